import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowergen.nn.dit import DiT, DiTBlock, rotary_2d, rotated

SHAPES = [(4, 16, 16), (3, 8, 4), (128, 1, 1), (5, 1, 1)]


def dit(shape: tuple[int, int, int], **settings: Any) -> DiT:
    """As small as it gets, with the same weights in each test."""
    torch.manual_seed(0)
    defaults = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
    return DiT(shape, num_classes=3, **(defaults | settings))


def randomised(net: nn.Module) -> nn.Module:
    """Also what starts at zero."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def batch(shape: tuple[int, int, int], num: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, times and labels, "no class" among them."""
    x = torch.randn(num, *shape, generator=torch.Generator().manual_seed(2))
    return x, torch.linspace(0, 999, num), torch.arange(num) % 4


@pytest.mark.parametrize("block", ["original", "modern"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_answer_is_zero(shape: tuple[int, int, int], block: str):
    """Of the input's shape, for maps that are no squares and flat latents too."""
    x, t, label = batch(shape)
    out = dit(shape, block=block)(x, t, label)
    assert out.shape == x.shape
    assert not out.any()


def test_so_the_first_loss_on_noise_is_one():
    """The mean of the squares of 32,768 standard normal numbers: 1, give or take 0.0078."""
    eps, t, label = batch((4, 16, 16), 32)
    loss = (dit((4, 16, 16))(eps, t, label) - eps).square().mean().item()
    assert loss == pytest.approx(1, abs=4 * 0.0078)


def test_a_block_starts_as_the_identity():
    """Its gates are closed, and only they: attention and MLP have weights of their own."""
    net = dit((4, 16, 16))
    x, c = torch.randn(2, 5, 16), torch.randn(2, 16)
    for block in net.blocks:
        assert torch.equal(block(x, c), x)
        assert not block.modulation[1].weight.any()
        for layer in (block.to_qkv, block.to_out, block.mlp[0], block.mlp[2]):
            bound = math.sqrt(6 / sum(layer.weight.shape))  # of Xavier's uniform initialisation
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


def test_a_block_is_adaln_zero():
    """Written out by hand: shift, scale and gate of the attention, then those of the MLP."""
    block = randomised(DiTBlock(8, 2)).double()
    x, c = torch.randn(2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)  # (2, 8): T tokens

    def norm(h: Tensor) -> Tensor:
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()

    vector = (block.modulation[1].weight @ (c * c.sigmoid()) + block.modulation[1].bias).view(6, 8)
    shift1, scale1, gate1, shift2, scale2, gate2 = vector
    inner = (1 + scale1) * norm(x) + shift1
    q, k, v = (inner @ w.T + b for w, b in zip(block.to_qkv.weight.split(8), block.to_qkv.bias.split(8), strict=True))
    heads = []
    for own in (slice(0, 4), slice(4, 8)):
        weights = torch.exp(q[:, own] @ k[:, own].T / 2)  # sqrt(4) = 2
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, own])
    h = x + gate1 * (torch.cat(heads, 1) @ block.to_out.weight.T + block.to_out.bias)
    inner = (1 + scale2) * norm(h) + shift2
    expected = h + gate2 * block.mlp(inner)
    torch.testing.assert_close(block(x[None], c[None])[0], expected)


@pytest.mark.parametrize("block", ["original", "modern"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time_and_class_change_the_answer(shape: tuple[int, int, int], block: str):
    """Times that are neighbours, and classes that are, "no class" among them."""
    net, (x, _, _) = randomised(dit(shape, block=block)), batch(shape, 1)

    def ask(t: float, label: int) -> Tensor:
        return net(x, torch.tensor([t]), torch.tensor([label]))

    answers = [ask(500.0, 0), ask(501.0, 0), ask(0.0, 0), ask(500.0, 1), ask(500.0, 2), ask(500.0, 3)]
    assert torch.pdist(torch.stack(answers).flatten(1)).min() > 1e-4


@pytest.mark.parametrize("block", ["original", "modern"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_answer_does_not_depend_on_the_others_in_the_batch(shape: tuple[int, int, int], block: str):
    net, (x, t, label) = randomised(dit(shape, block=block)), batch(shape)
    together = net(x, t, label)
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], label[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", ["original", "modern"])
@pytest.mark.parametrize("shape", [(2, 6, 4), (37, 1, 1), (5, 1, 1)], ids=str)
def test_every_number_hears_of_every_other(shape: tuple[int, int, int], block: str):
    """Each of the answer of each of the input, also of another patch: all of the Jacobian."""
    net, (x, t, label) = randomised(dit(shape, block=block)), batch(shape, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t, label).flatten(), x).view(x.numel(), x.numel())
    assert (jacobian != 0).all()


def test_without_attention_a_patch_hears_of_none_but_itself():
    """So the Jacobian above is the attention's doing, and each patch of the answer is at the place of its own."""
    net, (x, t, label) = randomised(dit((2, 6, 4))), batch((2, 6, 4), 1)
    for block in net.blocks:
        nn.init.zeros_(block.to_out.weight)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t, label), x)[0, :, :, :, 0]  # (C, h, w, C, h, w)
    for row in range(6):
        for column in range(4):
            heard = jacobian[:, row, column].abs().sum((0, 1))  # (h, w)
            own = torch.zeros(6, 4, dtype=torch.bool)
            own[row // 2 * 2 : row // 2 * 2 + 2, column // 2 * 2 : column // 2 * 2 + 2] = True
            assert torch.equal(heard > 0, own)


def test_a_modern_block_by_hand():
    """Queries and keys normalised and turned by their positions, SwiGLU."""
    block = randomised(DiTBlock(8, 2, "modern")).double()
    x, c = torch.randn(6, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)  # a map of 3 x 2, a head of 4

    def norm(h: Tensor, eps: float) -> Tensor:
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()

    def turn(h: Tensor) -> Tensor:
        """Values 0 and 2 are a pair that turns by the row, 1 and 3 one that turns by the column."""
        out = h.clone()
        for token in range(6):
            for first, angle in ((0, token // 2), (1, token % 2)):
                a, b, cos, sin = h[token, first], h[token, first + 2], math.cos(angle), math.sin(angle)
                out[token, first], out[token, first + 2] = a * cos - b * sin, a * sin + b * cos
        return out

    vector = (block.modulation[1].weight @ (c * c.sigmoid()) + block.modulation[1].bias).view(6, 8)
    shift1, scale1, gate1, shift2, scale2, gate2 = vector
    inner = (1 + scale1) * norm(x, 1e-6) + shift1
    q, k, v = (inner @ w.T + b for w, b in zip(block.to_qkv.weight.split(8), block.to_qkv.bias.split(8), strict=True))
    heads = []
    for own in (slice(0, 4), slice(4, 8)):
        query = turn(block.query_norm.weight * norm(q[:, own], 1e-5) + block.query_norm.bias)
        key = turn(block.key_norm.weight * norm(k[:, own], 1e-5) + block.key_norm.bias)
        heads.append(torch.softmax(query @ key.T / 2, 1) @ v[:, own])
    h = x + gate1 * (torch.cat(heads, 1) @ block.to_out.weight.T + block.to_out.bias)
    a, b = (((1 + scale2) * norm(h, 1e-6) + shift2) @ block.mlp.up.weight.T + block.mlp.up.bias).chunk(2, 1)
    expected = h + gate2 * ((a * a.sigmoid() * b) @ block.mlp.down.weight.T + block.mlp.down.bias)
    torch.testing.assert_close(block(x[None], c[None], rotary_2d(3, 2, 4).double())[0], expected, rtol=1e-6, atol=1e-6)


def test_rotary_products_depend_on_the_distance_alone():
    """Of two tokens that are one row down and two columns right of each other, wherever they are."""
    query, key = torch.randn(8), torch.randn(8)
    tokens = torch.stack((query, key)).expand(30, 2, 8).permute(1, 0, 2)[:, None]  # (2, 1, T, 8)
    q, k = rotated(tokens, rotary_2d(5, 6, 8))[:, 0]
    products = [q[6 * row + column] @ k[6 * (row + 1) + column + 2] for row in range(4) for column in range(4)]
    torch.testing.assert_close(torch.stack(products), products[0].expand(16), rtol=1e-4, atol=1e-4)
    assert (q[0] @ k[1] - products[0]).abs() > 1e-3
    torch.testing.assert_close(q.norm(dim=1), query.norm().expand(30))


def test_heads_that_do_not_turn_in_pairs_are_refused():
    with pytest.raises(ValueError, match="hidden_size=12 / num_heads=2 must be a multiple of 4"):
        dit((4, 16, 16), hidden_size=12, num_heads=2, block="modern")
    dit((4, 16, 16), hidden_size=12, num_heads=2)


def test_patches_are_put_back_where_they_came_from():
    """With a network that hands its tokens through, each token the numbers of its patch, the answer is the input."""
    net, (x, t, label) = dit((3, 4, 6), hidden_size=12), batch((3, 4, 6))
    eye = torch.eye(12)
    with torch.no_grad():
        net.to_tokens.weight.copy_(eye.view(12, 3, 2, 2))
        net.to_patches.weight.copy_(eye)
        net.to_tokens.bias.zero_()
        net.positions.zero_()
    net.norm = nn.Identity()
    torch.testing.assert_close(net(x, t, label), x)


def test_patches_know_their_place():
    """Of a uniform picture all patches are alike, and of the answer no two."""
    net = randomised(dit((1, 8, 8)))
    out = net(torch.ones(1, 1, 8, 8), torch.tensor([500.0]), torch.tensor([0]))
    patches = out.view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
    assert torch.pdist(patches).min() > 1e-3


def test_positions_are_no_part_of_the_state():
    """They follow from the shape."""
    net = dit((4, 16, 16))
    assert net.positions.shape == (64, 16)
    assert not [name for name in net.state_dict() if "positions" in name]
    assert not net.positions.requires_grad


@pytest.mark.parametrize("block", ["original", "modern"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_is_trained(shape: tuple[int, int, int], block: str):
    """Of each parameter some entry, and of the classes each."""
    net, (x, t, label) = randomised(dit(shape, block=block)), batch(shape)
    (net(x, t, label) * torch.randn_like(x)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert net.embed.label.weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4, 16, 16), (128, 1, 1)], ids=str)
def test_there_is_one_token_for_each_patch(shape: tuple[int, int, int], patch_size: int):
    net, (x, t, label) = randomised(dit(shape, patch_size=patch_size)), batch(shape)
    tokens: list[int] = []
    net.blocks[0].register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[1]))
    assert net(x, t, label).shape == x.shape
    assert tokens == [((16 if shape[1] == 16 else 8) // patch_size) ** 2]


@pytest.mark.parametrize("shape", [(4, 19, 19), (4, 16, 15), (4, 15, 16)], ids=str)
def test_a_map_that_patches_do_not_tile_is_refused(shape: tuple[int, int, int]):
    with pytest.raises(ValueError, match=f"patch_size=2 .* {shape[1]} x {shape[2]}"):
        dit(shape)


def test_patches_that_do_not_tile_a_flat_latent_s_map_are_refused():
    with pytest.raises(ValueError, match=r"patch_size=3 .* 8 x 8"):
        dit((128, 1, 1), patch_size=3)


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(16, 3), (18, 2), (6, 6)])
def test_a_hidden_size_that_does_not_divide_is_refused(hidden_size: int, num_heads: int):
    with pytest.raises(ValueError, match=f"hidden_size={hidden_size} .* num_heads={num_heads}"):
        dit((4, 16, 16), hidden_size=hidden_size, num_heads=num_heads)


def test_the_answer_is_float32_under_autocast():
    net, (x, t, label) = randomised(dit((4, 16, 16))), batch((4, 16, 16), 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t, label)
    assert out.dtype == torch.float32
    exact = net(x, t, label)
    assert (out - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_hidden_features_are_the_tokens_after_half_of_the_blocks(depth: int):
    """As a map in reading order; what is asked for beside it changes no answer."""
    net, (x, t, label) = randomised(dit((3, 4, 6), depth=depth)), batch((3, 4, 6))
    out, hidden = net(x, t, label, with_hidden=True)
    torch.testing.assert_close(out, net(x, t, label), rtol=0, atol=0)
    assert hidden.shape == (len(x), net.hidden_channels, 2, 3)
    h = net.to_tokens(x).flatten(2).transpose(1, 2) + net.positions
    for block in net.blocks[: {1: 1, 2: 1, 5: 2}[depth]]:
        h = block(h, net.embed(t, label))
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(hidden[:, :, row, column], h[:, 3 * row + column])


def test_it_is_built_on_the_meta_device():
    with torch.device("meta"):
        net = DiT((4, 8, 8), 3, 2, 16, 1, 2, "modern")
    assert all(parameter.is_meta for parameter in net.parameters())
