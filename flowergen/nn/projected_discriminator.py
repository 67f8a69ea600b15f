"""The discriminator of Projected GAN: small networks on frozen features at several resolutions."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.blocks import group_norm
from flowergen.nn.discriminator import DiscriminatorOutput, PowerIterations
from flowergen.picture_shape import PictureShape

SIDE = 4  # side of every head's map of logits


class ProjectedDiscriminator(PowerIterations):
    """Sauer et al. 2021 (arXiv:2111.01007, section 3): frozen features are mixed by frozen random convolutions, across channels
    and then across scales, and a head for each scale computes logits. GroupNorm replaces BatchNorm, which mixes pictures.

    Args:
        shape: (C, H, W) of the pictures.
        widths: channels of the frozen features at 1/2, 1/4, ... of the picture's side.
        channels: channels of the largest map after mixing; doubled at each smaller one, up to eight times.
        norm: ``group`` or ``spectral``, see ``PatchDiscriminator``.
    """

    def __init__(self, shape: PictureShape, widths: Sequence[int], channels: int, norm: Literal["group", "spectral"]):
        super().__init__()
        sides = [-(-shape.short_side // 2 ** (i + 1)) for i in range(len(widths))]
        mixed = [channels * min(2**i, 8) for i in range(len(widths))]
        for i, c in enumerate(mixed):  # random and never trained: buffers, which are saved in checkpoints
            self.register_buffer(f"across_channels_{i}", _random_kernel(c, widths[i], 1))
            if i > 0:
                self.register_buffer(f"across_scales_{i}", _random_kernel(mixed[i - 1], c, 3))
        self.heads = nn.ModuleList(_head(c, side, norm) for c, side in zip(mixed, sides, strict=True))
        self._set_norm(norm)

    def forward(self, features: Sequence[Tensor]) -> DiscriminatorOutput:
        """Classify pictures as real or fake.

        Args:
            features: frozen features of the pictures, (N, C, h, w) for each of ``widths``.
        """
        heads = zip(self.heads, self.mixed(features), strict=True)
        logits = [F.adaptive_avg_pool2d(head(h), SIDE) for head, h in heads]
        return DiscriminatorOutput(torch.cat(logits, dim=1).float(), list(features))

    def mixed(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute the heads' inputs h_i = A_i f_i + B_(i+1) enlarged(h_(i+1)), with random kernels A_i (1 x 1) and B_i (3 x 3).

        They are (N, C', h, w) for features (N, C, h, w), see ``forward``.
        """
        maps: list[Tensor] = []
        for i in reversed(range(len(features))):
            h = F.conv2d(features[i], self.get_buffer(f"across_channels_{i}"))
            if maps:
                enlarged = F.interpolate(maps[0], size=h.shape[-2:], mode="bilinear", align_corners=False)
                h = h + F.conv2d(enlarged, self.get_buffer(f"across_scales_{i + 1}"), padding=1)
            maps.insert(0, h)
        return maps


def _random_kernel(out_channels: int, in_channels: int, side: int) -> Tensor:
    kernel = torch.empty(out_channels, in_channels, side, side)
    return nn.init.kaiming_normal_(kernel, nonlinearity="linear")


def _head(channels: int, side: int, norm: Literal["group", "spectral"]) -> nn.Sequential:
    """Build a head (N, channels, h, w) -> (N, 1, h', w') for maps of a short side; that of its output is below 2 ``SIDE``."""

    def layer(c: int, c_next: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(c, c_next, kernel, stride, padding=1)
        return [conv, *([group_norm(c_next)] if norm == "group" else []), nn.LeakyReLU(0.2)]

    layers, c = layer(channels, channels, 3, 1), channels
    while side >= 2 * SIDE:
        layers += layer(c, min(2 * c, 8 * channels), 4, 2)
        c, side = min(2 * c, 8 * channels), side // 2
    return nn.Sequential(*layers, nn.Conv2d(c, 1, 3, padding=1))
