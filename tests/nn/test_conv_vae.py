import pytest
import torch
from torch import nn

from flowergen.nn.blocks import ACTIVATIONS, NORMS, group_norm
from flowergen.nn.conv_vae import ConvDecoder, ConvEncoder, map_sizes, stage_channels
from flowergen.picture_shape import PictureShape


@pytest.mark.parametrize(("image_size", "num_stages"), [(28, 2), (32, 3), (56, 3), (64, 4), (150, 5), (160, 5), (256, 6)])
def test_depth_follows_the_image_size(image_size, num_stages):
    """One stage a halving until the map is 4 to 7 px."""
    assert len(map_sizes(PictureShape.of(image_size))) == num_stages + 1
    assert all(4 <= map_sizes(PictureShape.of(size))[-1][0] <= 7 for size in range(28, 257))
    assert [side for side, _ in map_sizes(PictureShape.of(150))] == [150, 75, 38, 19, 10, 5]


def test_channels_are_cut_or_the_last_repeated():
    """One list of channels serves every image size."""
    assert stage_channels(PictureShape.of(28), [32, 64, 128, 256]) == (32, 64)
    assert stage_channels(PictureShape.of(64), [32, 64, 128, 256]) == (32, 64, 128, 256)
    assert stage_channels(PictureShape.of(256), [32, 64, 128]) == (32, 64, 128, 128, 128, 128)
    assert stage_channels(PictureShape.of(64), [16]) == (16, 16, 16, 16)


SQUARES = [*range(28, 73), 95, 96, 127, 128, 129, 150, 160, 191, 224, 250, 255, 256]
SHAPES = [*map(PictureShape.of, SQUARES), *(PictureShape.of(size, 1) for size in (28, (48, 64), (61, 33), (28, 256)))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_goes_in_comes_out_at_exactly_its_size(shape):
    """Odd sizes too: the decoder mirrors the encoder, map by map."""
    encoder = ConvEncoder(shape, [2, 3], 5, "none", "relu")
    decoder = ConvDecoder(shape, [2, 3], 5, "none", "relu")
    x = torch.rand(2, *shape)
    sizes = [x.shape[-2:]]
    for stage in encoder.stages:
        x = stage(x)
        sizes.append(x.shape[-2:])
    assert tuple(sizes) == map_sizes(shape)
    posterior = encoder(torch.rand(2, *shape))
    assert posterior.mean.shape == posterior.logvar.shape == (2, 5, 1, 1)
    assert decoder(posterior.mean).shape == (2, *shape)


def test_both_sides_are_halved_until_the_map_is_small():
    assert map_sizes(PictureShape.of((48, 64))) == ((48, 64), (24, 32), (12, 16), (6, 8))
    assert map_sizes(PictureShape.of((28, 256))) == ((28, 256), (14, 128), (7, 64), (4, 32), (2, 16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_parameter_learns(norm, activation):
    """No part is disconnected, and a bias that the norm after it would cancel does not exist."""
    encoder, decoder = (net(PictureShape.of(36), [4, 8], 5, norm, activation) for net in (ConvEncoder, ConvDecoder))
    posterior = encoder(torch.rand(4, 3, 36, 36))
    (decoder(posterior.sample(torch.randn(4, 5, 1, 1))).sigmoid() - 0.3).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.stages.named_parameters()]:
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_scale_survives_a_deep_network_without_norm(activation):
    """At 256 px the signal neither dies nor explodes over six stages there and seven back."""
    torch.manual_seed(0)
    encoder = ConvEncoder(PictureShape.of(256), [16, 32], 32, "none", activation)
    decoder = ConvDecoder(PictureShape.of(256), [16, 32], 32, "none", activation)
    with torch.no_grad():
        h = encoder.stages(torch.randn(2, 3, 256, 256))
        assert 0.1 < h.square().mean().sqrt() < 5
        before = h = decoder.unflatten(decoder.from_latent(torch.randn(2, 32)))
        for stage in decoder.stages[:-1]:
            h = stage(h)
        assert 0.1 < h.square().mean().sqrt() / before.square().mean().sqrt() < 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_posterior_is_float32_under_autocast(dtype):
    """Half precision stays inside the networks."""
    encoder, decoder = (net(PictureShape.of(32), [4, 8], 5, "batch", "relu") for net in (ConvEncoder, ConvDecoder))
    with torch.autocast("cpu", dtype=dtype):
        posterior = encoder(torch.rand(2, 3, 32, 32))
        logits = decoder(posterior.sample(torch.randn(2, 5, 1, 1)))
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32
    assert logits.dtype == dtype
    logits.float().sum().backward()


def test_memory_format_changes_nothing():
    """channels_last is a matter of speed."""
    encoder = ConvEncoder(PictureShape.of(45), [4, 8], 5, "group", "silu")
    decoder = ConvDecoder(PictureShape.of(45), [4, 8], 5, "group", "silu")
    x = torch.rand(2, 3, 45, 45)
    expected = decoder(encoder(x).mean)
    encoder, decoder = encoder.to(memory_format=torch.channels_last), decoder.to(memory_format=torch.channels_last)
    x_hat = decoder(encoder(x.contiguous(memory_format=torch.channels_last)).mean)
    torch.testing.assert_close(x_hat, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 32, 40, 56, 64, 96, 100, 256])
def test_group_norm_never_is_instance_norm(channels):
    """Any number of channels works, with more than one a group."""
    norm = group_norm(channels)
    assert isinstance(norm, nn.GroupNorm)
    assert channels % norm.num_groups == 0
    assert channels == 1 or channels // norm.num_groups > 1


def test_an_autoencoder_overfits_one_batch():
    """300 steps on eight random pictures of blobs bring the error under a tenth of the pictures' variance."""
    torch.manual_seed(0)
    x = nn.functional.interpolate(torch.rand(8, 3, 4, 4), size=(32, 32), mode="bicubic").clamp(0, 1)
    encoder, decoder = (net(PictureShape.of(32), [8, 16, 32], 16, "batch", "relu") for net in (ConvEncoder, ConvDecoder))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(300):
        loss = (decoder(encoder(x).mean).sigmoid() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * x.var()
