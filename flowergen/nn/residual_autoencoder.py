"""Encoder and decoder of residual and attention blocks, with a spatial or a flat latent."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.attention import SelfAttention
from flowergen.nn.blocks import ACTIVATIONS, NORMS, ResidualBlock
from flowergen.nn.posterior import Posterior


@dataclass(frozen=True)
class LatentShape:
    """Shape of the latent of a picture.

    Attributes:
        kind: ``spatial``: a map; ``flat``: a vector, as (D, 1, 1).
        factor: image size divided by the side of the smallest map, a power of two; ``auto``: see ``factor_for``.
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

    def factor_for(self, image_size: int) -> int:
        """Return the factor, chosen by image size if it is ``auto``.

        Spatial: the largest that divides the image size, up to 4 for pictures of up to 128 px, up to 8 for larger ones (the
        best two in latent diffusion, arXiv:2112.10752, section 4.1). Flat: halved as long as the side is even, to 4 to 7 px.

        Args:
            image_size: S in px.

        Raises:
            ValueError: the factor does not divide S, or no power of two gives a small enough map for a flat latent.
        """
        if self.factor != "auto":
            if image_size % self.factor:
                raise ValueError(f"a latent factor of {self.factor} does not divide pictures of {image_size} px")
            return self.factor
        smallest = 7 if self.kind == "flat" else image_size // (4 if image_size <= 128 else 8)
        factor = 1
        while image_size % (2 * factor) == 0 and image_size // factor > smallest:
            factor *= 2
        if self.kind == "flat" and image_size // factor > 16:  # its linear layers would have 100 million weights or more
            raise ValueError(f"a flat latent needs a size that halves down to 16 px or less, and {image_size} px does not")
        return factor

    def shape_for(self, image_size: int) -> tuple[int, int, int]:
        """Return (C, h, w) of a picture's latent.

        Args:
            image_size: S in px.
        """
        if self.kind == "flat":
            return self.dim, 1, 1
        side = image_size // self.factor_for(image_size)
        return self.channels, side, side

    def network_factor_for(self, image_size: int) -> int:
        """Return the image size divided by the side of the smallest map of encoder and decoder.

        Args:
            image_size: S in px.

        Raises:
            ValueError: the patch size does not divide the factor, or its square does not divide the channels.
        """
        factor, num = self.factor_for(image_size), self.patch_size**2
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
            factor: image size divided by the side of the smallest map.

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
    """q(z|x): residual blocks and a strided convolution to halve the map, repeated; then mean and logvar.

    Args:
        image_size: S in px.
        latent: shape of the latent.
        blocks: configuration of the blocks.
    """

    def __init__(self, image_size: int, latent: LatentShape, blocks: Blocks):
        super().__init__()
        factor = latent.network_factor_for(image_size)
        maps = blocks.maps_for(factor)
        layers: list[nn.Module] = [nn.PixelUnshuffle(blocks.stem_px)] if blocks.stem_px > 1 else []
        layers.append(nn.Conv2d(3 * blocks.stem_px**2, maps[0][0], 3, padding=1))
        for (c, num), (c_next, _) in pairwise(maps):
            layers += [*(blocks.residual(c) for _ in range(num)), nn.Conv2d(c, c_next, 3, stride=2, padding=1)]
        c, num = maps[-1]
        layers += [*(blocks.residual(c) for _ in range(num)), *blocks.middle(c), *blocks.end(c)]
        if latent.kind == "flat":
            to_moments = nn.Linear(c * (image_size // factor) ** 2, 2 * latent.dim)
            layers += [nn.Flatten(), to_moments, nn.Unflatten(1, (2 * latent.dim, 1, 1))]
        else:
            layers.append(nn.Conv2d(c, 2 * latent.channels // latent.patch_size**2, 3, padding=1))
            # mean and logvar stay separate: the channels of a square are adjacent
            layers += [nn.PixelUnshuffle(latent.patch_size)] if latent.patch_size > 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Posterior:
        """Encode.

        Args:
            x: (N, 3, S, S).

        Returns:
            mean and logvar, each (N, C, h, w) float32.
        """
        return Posterior.from_moments(self.layers(x))


class ResidualDecoder(nn.Module):
    """p(x|z): the encoder's mirror image.

    Args:
        image_size: S in px.
        latent: shape of the latent.
        blocks: configuration of the blocks.
    """

    def __init__(self, image_size: int, latent: LatentShape, blocks: Blocks):
        super().__init__()
        factor = latent.network_factor_for(image_size)
        maps = blocks.maps_for(factor)[::-1]
        c, num = maps[0]
        layers: list[nn.Module]
        if latent.kind == "flat":
            side = image_size // factor
            layers = [nn.Flatten(), nn.Linear(latent.dim, c * side**2), nn.Unflatten(1, (c, side, side))]
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
        self.to_picture = nn.Conv2d(c, 3 * blocks.stem_px**2, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, c, S / stem_px, S / stem_px): the input of the last layer, ``to_picture``."""
        return self.layers(z)

    def picture(self, h: Tensor) -> Tensor:
        """(N, c, S / stem_px, S / stem_px) -> x_hat, (N, 3, S, S): the last layer, and the pixel shuffle if there is one."""
        return F.pixel_shuffle(self.to_picture(h), self.stem_px)

    def forward(self, z: Tensor) -> Tensor:
        """Decode.

        Args:
            z: (N, C, h, w).

        Returns:
            x_hat, (N, 3, S, S), unbounded.
        """
        return self.picture(self.features(z))


class ResidualAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        image_size: S in px.
        latent: shape of the latent.
        blocks: configuration of the blocks.
    """

    def __init__(self, image_size: int, latent: LatentShape, blocks: Blocks):
        super().__init__()
        self.encoder, self.decoder = ResidualEncoder(image_size, latent, blocks), ResidualDecoder(image_size, latent, blocks)
