import pytest
import torch
from torch import Tensor, nn

from flowergen.nn.attention import SelfAttention
from flowergen.nn.unet import ConditionedBlock, Stage, UNet

SHAPES = [(4, 16, 16), (4, 19, 19), (3, 8, 13), (128, 1, 1), (5, 1, 1)]


def unet(shape: tuple[int, int, int], **settings: object) -> UNet:
    """As small as it gets, with the same weights in each test."""
    torch.manual_seed(0)
    defaults = {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (), "head_channels": 4}
    return UNet(shape, num_classes=3, **(defaults | settings))


def randomised(net: nn.Module, std: float = 0.2) -> nn.Module:
    """Also what starts at zero."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """A group norm's statistics tell each position of all others, and would hide that nothing else does."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


def batch(shape: tuple[int, int, int], num: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, times and labels, "no class" among them."""
    x = torch.randn(num, *shape, generator=torch.Generator().manual_seed(2))
    return x, torch.linspace(0, 999, num), torch.arange(num) % 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_answer_is_zero(shape: tuple[int, int, int]):
    """Of the input's shape, for maps of odd sides and flat latents too."""
    x, t, label = batch(shape)
    out = unet(shape)(x, t, label)
    assert out.shape == x.shape
    assert not out.any()


def test_so_the_first_loss_on_noise_is_one():
    """The mean of the squares of 32,768 standard normal numbers: 1, give or take 0.0078."""
    eps, t, label = batch((4, 16, 16), 32)
    loss = (unet((4, 16, 16))(eps, t, label) - eps).square().mean().item()
    assert loss == pytest.approx(1, abs=4 * 0.0078)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time_and_class_change_the_answer(shape: tuple[int, int, int]):
    """Times that are neighbours, and classes that are, "no class" among them."""
    net, (x, _, _) = randomised(unet(shape)), batch(shape, 1)

    def ask(t: float, label: int) -> Tensor:
        return net(x, torch.tensor([t]), torch.tensor([label]))

    answers = [ask(500.0, 0), ask(501.0, 0), ask(0.0, 0), ask(500.0, 1), ask(500.0, 2), ask(500.0, 3)]
    assert torch.pdist(torch.stack(answers).flatten(1)).min() > 1e-4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_answer_does_not_depend_on_the_others_in_the_batch(shape: tuple[int, int, int]):
    net, (x, t, label) = randomised(unet(shape, attention_resolutions=(8,))), batch(shape)
    together = net(x, t, label)
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], label[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


def test_every_position_hears_of_every_other():
    """Without the norms, on a map that the convolutions alone do not cross: by the attention over the positions."""
    net = without_norms(randomised(unet((2, 16, 16), multipliers=(1,)), std=0.1))
    x, t, label = batch((2, 16, 16), 2)
    x.requires_grad_()
    out = net(x, t, label)
    for row, column in ((0, 0), (0, 15), (15, 3), (8, 8)):
        (grad,) = torch.autograd.grad(out[0, :, row, column].sum(), x, retain_graph=True)
        assert (grad[0].abs().sum(0) > 0).all()
        assert not grad[1].any()  # another picture

    for module in net.modules():  # and it is the attention indeed
        if isinstance(module, SelfAttention):
            nn.init.zeros_(module.to_out.weight)
    (grad,) = torch.autograd.grad(net(x, t, label)[0, :, 0, 0].sum(), x)
    assert not grad[0, :, 15, 15].any()


@pytest.mark.parametrize("dim", [5, 37])
def test_every_dimension_of_a_flat_latent_hears_of_every_other(dim: int):
    net, (x, t, label) = without_norms(randomised(unet((dim, 1, 1)))), batch((dim, 1, 1), 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t, label).flatten(), x).view(dim, dim)
    assert (jacobian != 0).all()


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 9, 9), (128, 1, 1)], ids=str)
def test_every_parameter_is_trained(shape: tuple[int, int, int]):
    """Of each parameter some entry, and of the classes each."""
    net, (x, t, label) = randomised(unet(shape, attention_resolutions=(8,), num_blocks=2)), batch(shape)
    (net(x, t, label) * torch.randn_like(x)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert net.embed.label.weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize(
    ("shape", "attention_resolutions", "sides"),
    [
        ((4, 16, 16), (), [8]),
        ((4, 16, 16), (16,), [16, 8, 16, 16]),  # once down, the middle, twice up
        ((4, 16, 16), (8,), [8, 8, 8, 8]),
        ((4, 16, 16), (16, 8), [16, 8, 8, 8, 8, 16, 16]),
        ((4, 19, 19), (10,), [10, 10, 10, 10]),  # 19 is halved to 10
        ((4, 19, 19), (9,), [10]),
        ((128, 1, 1), (8,), [8, 4, 8, 8]),
    ],
    ids=str,
)
def test_attention_is_at_the_sides_asked_for_and_in_the_middle(
    shape: tuple[int, int, int], attention_resolutions: tuple[int, ...], sides: list[int]
):
    """The sides of the maps that attention sees, in its order."""
    net = unet(shape, attention_resolutions=attention_resolutions)
    seen: list[int] = []
    for module in net.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    net(*batch(shape, 1))
    assert seen == sides


@pytest.mark.parametrize(("channels", "head_channels", "heads"), [(8, 4, 2), (8, 64, 1), (12, 5, 2), (14, 3, 2), (8, 1, 8)])
def test_heads_are_as_wide_as_asked_for_or_wider(channels: int, head_channels: int, heads: int):
    """The largest number of heads not above C / head_channels that divides C."""
    attention = Stage(channels, channels, 8, head_channels).attention
    assert isinstance(attention, SelfAttention)
    assert attention.num_heads == heads


def test_a_block_starts_as_its_skip():
    """And is scaled and shifted by the conditioning vector behind its second norm, written out by hand."""
    torch.manual_seed(0)
    h, c = torch.randn(2, 6, 3, 3), torch.randn(2, 5)
    block = ConditionedBlock(6, 6, 5)
    assert torch.equal(block(h, c), h)
    wider = ConditionedBlock(6, 8, 5)
    assert torch.equal(wider(h, c), wider.skip(h))

    randomised(wider)
    vector = (c * c.sigmoid()) @ wider.to_scale_shift.weight.T + wider.to_scale_shift.bias
    scale, shift = vector[:, :8, None, None], vector[:, 8:, None, None]
    inner = wider.norm1(h)
    inner = wider.norm2(wider.conv1(inner * inner.sigmoid())) * (1 + scale) + shift
    torch.testing.assert_close(wider(h, c), wider.skip(h) + wider.conv2(inner * inner.sigmoid()))


@pytest.mark.parametrize(
    ("shape", "multipliers", "fits"),
    [
        ((4, 16, 16), (1, 1, 1, 1), True),  # 16, 8, 4, 2
        ((4, 16, 16), (1, 1, 1, 1, 1), False),
        ((4, 19, 16), (1, 1, 1, 1, 1), False),
        ((128, 1, 1), (1, 1, 1), True),  # 8, 4, 2
        ((128, 1, 1), (1, 1, 1, 1), False),
    ],
    ids=str,
)
def test_a_map_is_not_halved_below_two(shape: tuple[int, int, int], multipliers: tuple[int, ...], fits: bool):
    if fits:
        assert unet(shape, multipliers=multipliers)(*batch(shape, 1)).shape == (1, *shape)
        return
    with pytest.raises(ValueError, match=f"{len(multipliers)} levels.*fewer multipliers"):
        unet(shape, multipliers=multipliers)


def test_the_answer_is_float32_under_autocast():
    net, (x, t, label) = randomised(unet((4, 16, 16))), batch((4, 16, 16), 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t, label)
    assert out.dtype == torch.float32
    exact = net(x, t, label)
    assert (out - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("shape", [(3, 8, 8), (37, 1, 1)], ids=str)
def test_hidden_features_are_the_smallest_map(shape: tuple[int, int, int]):
    """All that the way up gets beside the skips; what is asked for beside it changes no answer."""
    net, (x, t, label) = randomised(unet(shape)), batch(shape)
    seen: list[Tensor] = []
    net.middle[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    out, hidden = net(x, t, label, with_hidden=True)
    torch.testing.assert_close(out, net(x, t, label), rtol=0, atol=0)
    assert hidden is seen[0]
    assert hidden.shape == (4, net.hidden_channels, 4, 4)
