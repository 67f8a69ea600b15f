from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowergen.nn.discriminator import frozen
from flowergen.nn.efficientnet import WIDTHS, num_maps_for
from flowergen.nn.projected_discriminator import ProjectedDiscriminator
from flowergen.picture_shape import PictureShape
from flowergen.randomness import initialisation


def build(size: int = 64, norm: Any = "group", channels: int = 4) -> ProjectedDiscriminator:
    with initialisation(0):
        return ProjectedDiscriminator(PictureShape.of(size), WIDTHS[: num_maps_for(PictureShape.of(size))], channels, norm)


def features(size: int = 64, num: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = [-(-size // 2**i) for i in range(1, num_maps_for(PictureShape.of(size)) + 1)]
    return [torch.randn(num, c, side, side, generator=generator) for c, side in zip(WIDTHS, sides, strict=False)]


@pytest.mark.parametrize("norm", ["group", "spectral"])
@pytest.mark.parametrize(("size", "heads"), [(16, 2), (28, 3), (64, 4), (90, 4), (128, 5), (256, 5)])
def test_each_map_of_at_least_four_positions_a_side_has_a_head_with_sixteen_logits(size: int, heads: int, norm: Any) -> None:
    net, given = build(size, norm), features(size)
    assert net(given).logits.shape == (2, heads, 4, 4)
    assert [h.shape[1] for h in net.mixed(given)] == [4, 8, 16, 32, 32][:heads]


def test_a_rectangle_has_as_many_logits_as_a_square() -> None:
    shape = PictureShape.of((48, 80), 1)
    net = ProjectedDiscriminator(shape, WIDTHS[: num_maps_for(shape)], 4, "group")
    maps = [torch.rand(2, WIDTHS[i], -(-48 // 2 ** (i + 1)), -(-80 // 2 ** (i + 1))) for i in range(num_maps_for(shape))]
    assert len(maps) == 3
    assert net(maps).logits.shape == (2, 3, 4, 4)


def test_features_are_mixed_across_channels_then_from_the_smallest_map_to_the_largest() -> None:
    """h_i = A_i f_i + B_(i+1) up(h_(i+1)), written out as matrix products at each position (arXiv:2111.01007, figure 3)."""
    net, given = build(16), features(16)
    across_1 = torch.einsum("oc,nchw->nohw", net.get_buffer("across_channels_1")[:, :, 0, 0], given[1])
    across_0 = torch.einsum("oc,nchw->nohw", net.get_buffer("across_channels_0")[:, :, 0, 0], given[0])
    enlarged = nn.Upsample(scale_factor=2, mode="bilinear")(across_1)
    patches = F.unfold(enlarged, 3, padding=1)  # (N, C 9, h w)
    mixed = (net.get_buffer("across_scales_1").flatten(1) @ patches).view_as(across_0)
    found = net.mixed(given)
    torch.testing.assert_close(found[1], across_1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], across_0 + mixed, rtol=1e-4, atol=1e-5)


def test_every_scale_reaches_the_logits_of_the_largest_map() -> None:
    given = [f.requires_grad_() for f in features()]
    build()(given).logits[:, 0].sum().backward()
    assert len(given) == 4, "a map of 2 x 2 is left out"
    assert all(f.grad is not None and f.grad.abs().max() > 0 for f in given)


def test_the_mixing_is_never_trained() -> None:
    net = build()
    assert not any("across" in name for name, _ in net.named_parameters())
    assert sum("across" in name for name in net.state_dict()) == 7


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_no_picture_of_a_batch_touches_another(norm: Any) -> None:
    net, both = build(norm=norm).train(), features()
    first = net([f[:1] for f in both])
    torch.testing.assert_close(net(both).logits[:1], first.logits, rtol=1e-4, atol=1e-5)


def test_spectral_norms_become_one_where_they_are_asked_for() -> None:
    net = build(norm="spectral")
    for _ in range(100):
        net.update_spectral_norms()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(parametrize.is_parametrized(conv, "weight") for conv in convs)
    for conv in convs:
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_frozen_heads_let_gradients_through_and_none_in() -> None:
    net, given = build(), [f.requires_grad_() for f in features()]
    with frozen(net):
        net(given).logits.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert given[0].grad is not None
