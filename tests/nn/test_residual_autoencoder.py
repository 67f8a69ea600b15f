from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from flowergen.nn.attention import ChannelAttention, SelfAttention, SpatialAttention
from flowergen.nn.blocks import ACTIVATIONS, NORMS, ResidualBlock
from flowergen.nn.residual_autoencoder import Blocks, LatentShape, ResidualAutoencoder
from flowergen.picture_shape import PictureShape

SPATIAL = LatentShape("spatial", "auto", channels=3, dim=5)
FLAT = LatentShape("flat", "auto", channels=3, dim=5)
BLOCKS = Blocks([4, 8], [1, 1], "group", "silu", True, True, True)


def build(size: int, latent: LatentShape, **changes: Any) -> ResidualAutoencoder:
    torch.manual_seed(0)
    return ResidualAutoencoder(PictureShape.of(size), latent, replace(BLOCKS, **changes))


def randomised(net: nn.Module) -> nn.Module:
    """Also what starts at zero."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("latent", [SPATIAL, FLAT], ids=lambda latent: latent.kind)
@pytest.mark.parametrize("size", [28, 29, 32, 36, 45, 64, 75, 96, 100, 127, 128, 129, 136, 150, 160, 200, 224, 250, 255, 256])
def test_every_size_goes_in_and_comes_out(size: int, latent: LatentShape):
    """Shapes alone, on the meta device: memory and time are no matter."""
    if latent is FLAT and size // (size & -size) > 16:
        latent = replace(FLAT, factor=size & -size)  # not by itself, see test_a_flat_latent_wants_a_small_map
    with torch.device("meta"):
        net = ResidualAutoencoder(PictureShape.of(size), latent, BLOCKS)
        posterior = net.encoder(torch.empty(2, 3, size, size))
        assert posterior.mean.shape == posterior.logvar.shape == (2, *latent.shape_for(PictureShape.of(size)))
        assert net.decoder(posterior.mean).shape == (2, 3, size, size)
        assert net.decoder.features(posterior.mean).shape == (2, 4, size, size)


@pytest.mark.parametrize(
    ("size", "spatial", "flat"),
    [((48, 64), 4, 8), ((32, 128), 4, 16), ((96, 256), 8, 32), ((30, 64), 2, None), ((48, 50), 2, None)],
)
def test_both_sides_of_a_grey_rectangle_are_divided(size: tuple[int, int], spatial: int, flat: int | None):
    """A flat latent has a map of at most 49 positions, which 15 x 32 and 24 x 25, the smallest of the last two, exceed."""
    shape = PictureShape.of(size, channels=1)
    for latent, factor in ((SPATIAL, spatial), (FLAT, flat)):
        if factor is None:
            with pytest.raises(
                ValueError, match=f"sides that halve down to 16 px or less, and {size[0]} x {size[1]} px in grey"
            ):
                latent.factor_for(shape)
            continue
        assert latent.factor_for(shape) == factor
        with torch.device("meta"):
            net = ResidualAutoencoder(shape, latent, BLOCKS)
            posterior = net.encoder(torch.empty(2, *shape))
            assert posterior.mean.shape == (2, *latent.shape_for(shape))
            assert net.decoder(posterior.mean).shape == (2, *shape)
    assert SPATIAL.shape_for(shape) == (3, size[0] // spatial, size[1] // spatial)


@pytest.mark.parametrize(
    ("size", "spatial", "flat"),
    [(28, 4, 4), (32, 4, 8), (56, 4, 8), (64, 4, 16), (128, 4, 32), (144, 8, 16), (256, 8, 64), (30, 2, 2)],
)
def test_the_factor_goes_by_the_image_size(size: int, spatial: int, flat: int):
    """4 up to 128 px, 8 above, to 4 to 7 px where flat; and less where halvings do not come out even."""
    assert (SPATIAL.factor_for(PictureShape.of(size)), FLAT.factor_for(PictureShape.of(size))) == (spatial, flat)
    assert SPATIAL.shape_for(PictureShape.of(size)) == (3, size // spatial, size // spatial)
    assert FLAT.shape_for(PictureShape.of(size)) == (5, 1, 1)


@pytest.mark.parametrize(("size", "spatial"), [(45, 1), (127, 1), (136, 8), (150, 2)])
def test_a_flat_latent_wants_a_small_map(size: int, spatial: int):
    """Its linear layers have weights for each position: 277 million for pictures of 150 px, which halve once."""
    assert SPATIAL.factor_for(PictureShape.of(size)) == spatial
    with pytest.raises(ValueError, match=f"sides that halve down to 16 px or less, and {size} px does not"):
        FLAT.factor_for(PictureShape.of(size))


@pytest.mark.parametrize("latent", [SPATIAL, FLAT], ids=lambda latent: latent.kind)
def test_no_factor_leaves_a_rest_and_none_is_smaller_than_it_need_be(latent: LatentShape):
    for size in range(28, 257):
        largest = size if latent is FLAT else 4 if size <= 128 else 8
        if latent is FLAT and size // (size & -size) > 16:  # the odd part of the size
            continue
        factor = latent.factor_for(PictureShape.of(size))
        assert size % factor == 0
        assert factor & (factor - 1) == 0
        assert factor <= largest
        could_go_on = size % (2 * factor) == 0 and 2 * factor <= largest
        assert not could_go_on or (latent is FLAT and 4 <= size // factor <= 7)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["spatial", "flat"])
def test_a_factor_of_one_s_own(kind: Any, factor: int):
    latent = LatentShape(kind, factor, channels=3, dim=5)
    net = build(32, latent, num_blocks=[0])
    side = 32 // factor
    shape = (5, 1, 1) if kind == "flat" else (3, side, side)
    assert latent.shape_for(PictureShape.of(32)) == shape
    posterior = net.encoder(torch.randn(2, 3, 32, 32))
    assert posterior.mean.shape == (2, *shape)
    assert net.decoder(posterior.mean).shape == (2, 3, 32, 32)
    maps = []
    for module in net.encoder.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda _, __, out: maps.append(out.shape[-1]))
    net.encoder(torch.randn(1, 3, 32, 32))
    assert maps == [side]


@pytest.mark.parametrize(("size", "factor"), [(150, 4), (28, 8), (45, 2)])
def test_a_factor_that_does_not_divide_is_refused(size: int, factor: int):
    with pytest.raises(ValueError, match=f"factor of {factor} does not divide pictures of {size} px"):
        build(size, LatentShape("spatial", factor, 3, 5))


def test_patches_are_squares_of_positions_as_channels_and_change_nothing_else():
    """The weights of a network without them give its latents, each square of 2 x 2 at one position, and its pictures."""
    plain = build(32, LatentShape("spatial", 4, channels=2, dim=5))
    patched = build(32, LatentShape("spatial", 8, channels=8, dim=5, patch_size=2))
    randomised(plain)
    for parameter, other in zip(patched.parameters(), plain.parameters(), strict=True):
        parameter.data.copy_(other)
    x = torch.randn(2, 3, 32, 32)
    expected, posterior = plain.encoder(x), patched.encoder(x)
    for moment, without in zip(posterior, expected, strict=True):
        assert moment.shape == (2, 8, 4, 4)
        for channel in range(8):
            c, square = divmod(channel, 4)
            assert torch.equal(moment[:, channel], without[:, c, square // 2 :: 2, square % 2 :: 2])
    assert torch.equal(patched.decoder(posterior.mean), plain.decoder(expected.mean))


@pytest.mark.parametrize(("factor", "channels"), [(8, 6), (1, 8)])
def test_patches_that_do_not_fit_the_latent_are_refused(factor: int, channels: int):
    with pytest.raises(
        ValueError, match=f"patch_size=2 needs .* multiple of 2 .* of 4, not factor={factor} and channels={channels}"
    ):
        LatentShape("spatial", factor, channels, dim=5, patch_size=2).network_factor_for(PictureShape.of(32))


@pytest.mark.parametrize("kind", ["spatial", "flat"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_and_activation_is_what_is_built_and_every_parameter_learns(norm: str, activation: str, kind: Any):
    """No part is disconnected, once the zeros of the first step are gone."""
    net = build(16, LatentShape(kind, 4, 3, 5), norm=norm, activation=activation)
    used = {type(module) for module in net.modules()}
    for name, make in NORMS.items():
        assert (type(make(8)) in used) == (name == norm)
    for name, make_activation in ACTIVATIONS.items():
        assert (type(make_activation()) in used) == (name == activation)
    randomised(net)
    for module in net.modules():
        if isinstance(module, ChannelAttention):
            nn.init.constant_(module.squeeze.bias, 10)  # its ReLUs are on
    posterior = net.encoder(torch.randn(4, 3, 16, 16))
    net.decoder(posterior.sample(torch.randn(posterior.mean.shape))).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("switch", "kind"),
    [("channel_attention", ChannelAttention), ("spatial_attention", SpatialAttention), ("self_attention", SelfAttention)],
)
def test_each_attention_has_a_switch_of_its_own(switch: str, kind: type[nn.Module]):
    """Off leaves out its modules and no others; the network runs either way, to another result."""
    outputs, x = [], torch.randn(2, 3, 16, 16)
    for on in (True, False):
        net = randomised(build(16, LatentShape("spatial", 4, 3, 5), **{switch: on}))
        assert any(isinstance(module, kind) for module in net.encoder.modules()) == on
        assert any(isinstance(module, kind) for module in net.decoder.modules()) == on
        for other in {ChannelAttention, SpatialAttention, SelfAttention} - {kind}:
            assert any(isinstance(module, other) for module in net.modules())
        outputs.append(net.decoder(net.encoder(x).mean))
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("num_blocks", [[0, 0, 0], [2, 1, 0], [3]])
def test_there_are_as_many_residual_blocks_as_asked_for_and_two_in_the_middle(num_blocks: list[int]):
    """Short lists are continued with their last entry."""
    net = build(16, LatentShape("spatial", 4, 3, 5), num_blocks=num_blocks, channels=[4])
    expected = 2 + (sum(num_blocks) if len(num_blocks) == 3 else 9)
    for half in (net.encoder, net.decoder):
        assert sum(isinstance(module, ResidualBlock) for module in half.modules()) == expected


@pytest.mark.parametrize("kind", ["spatial", "flat"])
@pytest.mark.parametrize("norm", sorted(set(NORMS) - {"batch"}))
def test_no_picture_of_a_batch_touches_another(norm: str, kind: Any):
    """In training mode, forwards and backwards, with all attentions at work."""
    net = randomised(build(16, LatentShape(kind, 4, 3, 5), norm=norm)).train()
    x = torch.randn(3, 3, 16, 16, requires_grad=True)
    posterior = net.encoder(x)
    x_hat = net.decoder(posterior.mean)
    (gradient,) = torch.autograd.grad(x_hat[1].square().sum() + posterior.logvar[1].sum(), x)
    assert gradient[1].abs().max() > 0
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0
    torch.testing.assert_close(net.decoder(net.encoder(x[1:2]).mean), x_hat[1:2], rtol=1e-4, atol=1e-4)


def test_the_decoder_s_last_layer_is_the_one_by_which_the_adaptive_weight_is_measured():
    net = randomised(build(16, LatentShape("spatial", 4, 3, 5)))
    z = torch.randn(2, 3, 4, 4)
    assert torch.equal(net.decoder.to_picture(net.decoder.features(z)), net.decoder(z))
    assert isinstance(net.decoder.to_picture, nn.Conv2d)
