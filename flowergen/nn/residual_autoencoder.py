"""Encoder and decoder of residual and attention blocks, with a spatial or a flat latent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.attention import SelfAttention
from flowergen.nn.blocks import ACTIVATIONS, NORMS, ResidualBlock
from flowergen.nn.posterior import Posterior
from flowergen.picture_shape import PictureShape


@dataclass(frozen=True)
class LatentShape:
    """Shape of the latent of a picture.

    Attributes:
        kind: ``spatial``: a map; ``flat``: a vector, as (D, 1, 1).
        factor: height of the picture divided by that of the smallest map, a power of two; ``auto``: see ``factor_for``.
        channels: C of a spatial latent.
        dim: D of a flat latent.
        patch_size: for a spatial latent; with 2, the networks downsample by ``factor`` / 2 only, and squares of 2 x 2 positions
            become the channels of one position of the latent.
    """

    kind: Literal["spatial", "flat"]
    factor: int | Literal["auto"]
    channels: int
    dim: int
    patch_size: int = 1

    def factor_for(self, shape: PictureShape) -> int:
        """Return the factor, chosen by image size if it is ``auto``.

        Spatial: the largest that divides both sides, up to 4 for pictures of up to 128 x 128 px, up to 8 for larger ones (the
        best two in latent diffusion, arXiv:2112.10752, section 4.1). Flat: the smallest that divides both sides and leaves a
        map of at most 7 x 7 positions, or the largest that divides them.

        Raises:
            ValueError: the factor does not divide both sides, or no power of two gives a small enough map for a flat latent.
        """
        common = math.gcd(shape.height, shape.width)
        if self.factor != "auto":
            if common % self.factor:
                raise ValueError(f"a latent factor of {self.factor} does not divide pictures of {shape}")
            return self.factor
        num_pixels = shape.height * shape.width
        most = num_pixels // 4**2 if num_pixels <= 128**2 else num_pixels // 8**2
        if self.kind == "flat":
            most = 7**2
        factor = 1
        while common % (2 * factor) == 0 and num_pixels // factor**2 > most:
            factor *= 2
        if self.kind == "flat" and num_pixels // factor**2 > 16**2:  # its linear layers would have 100 million weights or more
            raise ValueError(f"a flat latent needs sides that halve down to 16 px or less, and {shape} does not")
        return factor

    def shape_for(self, shape: PictureShape) -> tuple[int, int, int]:
        """Return (C, h, w) of a picture's latent."""
        if self.kind == "flat":
            return self.dim, 1, 1
        factor = self.factor_for(shape)
        return self.channels, shape.height // factor, shape.width // factor

    def network_factor_for(self, shape: PictureShape) -> int:
        """Return the height of the picture divided by that of the smallest map of encoder and decoder.

        Raises:
            ValueError: the patch size does not divide the factor, or its square does not divide the channels.
        """
        factor, num = self.factor_for(shape), self.patch_size**2
        if self.kind == "flat" or self.patch_size == 1:
            return factor
        if factor % self.patch_size or self.channels % num:
            raise ValueError(
                f"patch_size={self.patch_size} needs a factor that is a multiple of {self.patch_size} and channels that are "
                f"one of {num}, not factor={factor} and channels={self.channels}"
            )
        return factor // self.patch_size


@dataclass(frozen=True)
class Blocks:
    """Blocks of the encoder and the decoder.

    Attributes:
        channels: channels of the feature maps, one entry for each resolution from the outermost map inwards; truncated, or the
            last one repeated, to the number of resolutions.
        num_blocks: number of residual blocks at each resolution, likewise.
        norm: key of ``blocks.NORMS``.
        activation: key of ``blocks.ACTIVATIONS``.
        channel_attention: squeeze-and-excitation in every residual block.
        spatial_attention: CBAM's mask in every residual block.
        self_attention: self-attention over the positions of the smallest map.
        stem_px: side in px of the squares of pixels that become the channels of one position of the outermost map (pixel
            shuffle, Shi et al. 2016, arXiv:1609.05158); with 2, no convolution runs at full resolution. A power of two, at most
            the latent's factor.
    """

    channels: Sequence[int]
    num_blocks: Sequence[int]
    norm: str
    activation: str
    channel_attention: bool
    spatial_attention: bool
    self_attention: bool
    stem_px: int = 1

    def maps_for(self, factor: int) -> list[tuple[int, int]]:
        """Return the channels and the number of residual blocks of each resolution, the outermost first.

        Args:
            factor: height of the picture divided by that of the smallest map.

        Raises:
            ValueError: the stem is not a power of two, or larger than the factor.
        """
        if self.stem_px not in {2**i for i in range(factor.bit_length())}:
            raise ValueError(
                f"model.blocks.stem_px={self.stem_px} must be a power of two of at most the latent's factor, {factor}"
            )
        return [
            (self.channels[min(i, len(self.channels) - 1)], self.num_blocks[min(i, len(self.num_blocks) - 1)])
            for i in range((factor // self.stem_px).bit_length())  # factor 4 without a stem: the picture's size, 1/2, 1/4
        ]

    def residual(self, channels: int) -> ResidualBlock:
        """Build a residual block."""
        return ResidualBlock(channels, self.norm, self.activation, self.channel_attention, self.spatial_attention)

    def middle(self, channels: int) -> list[nn.Module]:
        """Build the layers on the smallest map: attention between two residual blocks, as in latent diffusion's autoencoder."""
        attention = [SelfAttention(channels, NORMS[self.norm](channels))] if self.self_attention else []
        return [self.residual(channels), *attention, self.residual(channels)]

    def end(self, channels: int) -> list[nn.Module]:
        """Build the norm and activation that follow a sequence of pre-activation blocks."""
        return [NORMS[self.norm](channels), ACTIVATIONS[self.activation]()]


class ResidualEncoder(nn.Module):
    """q(z|x): residual blocks and a strided convolution to halve the map, repeated; then mean and logvar."""

    def __init__(self, shape: PictureShape, latent: LatentShape, blocks: Blocks):
        super().__init__()
        factor = latent.network_factor_for(shape)
        maps = blocks.maps_for(factor)
        layers: list[nn.Module] = [nn.PixelUnshuffle(blocks.stem_px)] if blocks.stem_px > 1 else []
        layers.append(nn.Conv2d(shape.channels * blocks.stem_px**2, maps[0][0], 3, padding=1))
        for (c, num), (c_next, _) in pairwise(maps):
            layers += [*(blocks.residual(c) for _ in range(num)), nn.Conv2d(c, c_next, 3, stride=2, padding=1)]
        c, num = maps[-1]
        layers += [*(blocks.residual(c) for _ in range(num)), *blocks.middle(c), *blocks.end(c)]
        if latent.kind == "flat":
            to_moments = nn.Linear(c * (shape.height // factor) * (shape.width // factor), 2 * latent.dim)
            layers += [nn.Flatten(), to_moments, nn.Unflatten(1, (2 * latent.dim, 1, 1))]
        else:
            layers.append(nn.Conv2d(c, 2 * latent.channels // latent.patch_size**2, 3, padding=1))
            # mean and logvar stay separate: the channels of a square are adjacent
            layers += [nn.PixelUnshuffle(latent.patch_size)] if latent.patch_size > 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Posterior:
        """(N, C, H, W) -> mean and logvar, each (N, C, h, w) float32."""
        return Posterior.from_moments(self.layers(x))


class ResidualDecoder(nn.Module):
    """p(x|z): the encoder's mirror image."""

    def __init__(self, shape: PictureShape, latent: LatentShape, blocks: Blocks):
        super().__init__()
        factor = latent.network_factor_for(shape)
        maps = blocks.maps_for(factor)[::-1]
        c, num = maps[0]
        layers: list[nn.Module]
        if latent.kind == "flat":
            smallest = (c, shape.height // factor, shape.width // factor)
            layers = [nn.Flatten(), nn.Linear(latent.dim, math.prod(smallest)), nn.Unflatten(1, smallest)]
        else:
            layers = [nn.PixelShuffle(latent.patch_size)] if latent.patch_size > 1 else []
            layers.append(nn.Conv2d(latent.channels // latent.patch_size**2, c, 3, padding=1))
        layers += [*blocks.middle(c), *(blocks.residual(c) for _ in range(num))]
        for (c, _), (c_next, num) in pairwise(maps):
            # nearest upsampling and a convolution cause no checkerboard (Odena et al. 2016, 10.23915/distill.00003)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, c_next, 3, padding=1)]
            layers += [blocks.residual(c_next) for _ in range(num)]
        c = maps[-1][0]
        self.layers = nn.Sequential(*layers, *blocks.end(c))
        self.stem_px = blocks.stem_px
        self.to_picture = nn.Conv2d(c, shape.channels * blocks.stem_px**2, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, c, H / stem_px, W / stem_px): the input of the last layer, ``to_picture``."""
        return self.layers(z)

    def picture(self, h: Tensor) -> Tensor:
        """(N, c, H / stem_px, W / stem_px) -> x_hat, (N, C, H, W): the last layer, and the pixel shuffle if there is one."""
        return F.pixel_shuffle(self.to_picture(h), self.stem_px)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> x_hat, (N, C, H, W), unbounded."""
        return self.picture(self.features(z))


class ResidualAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        shape: (C, H, W) of the pictures.
        latent: shape of the latent.
        blocks: configuration of the blocks.
    """

    def __init__(self, shape: PictureShape, latent: LatentShape, blocks: Blocks):
        super().__init__()
        self.encoder, self.decoder = ResidualEncoder(shape, latent, blocks), ResidualDecoder(shape, latent, blocks)
