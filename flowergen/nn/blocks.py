"""Blocks of convolution, norm and activation that halve or double a feature map, and residual blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.attention import ChannelAttention, SpatialAttention

Layer = TypeVar("Layer", bound=nn.Module)


def zero(layer: Layer) -> Layer:
    """Set the parameters of a layer to 0 and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with 16 channels per group, the best fixed width of Wu & He 2018 (arXiv:1803.08494, table 3).

    If 16 does not divide the channels, the groups are wider. They never have one channel, which would be InstanceNorm.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450) over the channels of each position of a map independently.

    Each position is normalised to mean 0 and variance 1 over its channels, then scaled and shifted per channel. (A norm over
    the positions of each channel, sometimes called by the same name, is InstanceNorm.)
    """

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        h = h.permute(0, 2, 3, 1)  # (N, h, w, C): contiguous if the memory is channels_last
        return F.layer_norm(h, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": group_norm,
    "layer": LayerNorm2d,
    "none": nn.Identity,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),  # the slope of DCGAN (Radford et al. 2016, arXiv:1511.06434)
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def down(in_channels: int, out_channels: int, norm: str, activation: str) -> nn.Sequential:
    """Build a block (N, C, h, w) -> (N, C', ceil(h / 2), ceil(w / 2)), also for odd sizes.

    He initialisation (He et al. 2015, arXiv:1502.01852, equation 10) preserves the scale if there is no norm.

    Args:
        in_channels: C.
        out_channels: C'.
        norm: key of `NORMS`.
        activation: key of `ACTIVATIONS`.
    """
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, NORMS[norm](out_channels), ACTIVATIONS[activation]())


def up(in_channels: int, out_channels: int, norm: str, activation: str) -> nn.Sequential:
    """Build a block (N, C, h, w) -> (N, C', 2h, 2w), with the arguments and the initialisation of `down`.

    The kernel is a multiple of the stride, so every output pixel has equally many inputs; a kernel of 3 causes checkerboard
    artefacts (Odena et al. 2016, 10.23915/distill.00003).
    """
    conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=norm == "none")
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (4 * in_channels)))  # each output pixel uses 2 x 2 of the 4 x 4 weights
    return nn.Sequential(conv, NORMS[norm](out_channels), ACTIVATIONS[activation]())


class ResidualBlock(nn.Module):
    """h + conv(act(norm(conv(act(norm(h)))))): pre-activation (He et al. 2016, arXiv:1603.05027, figure 4e).

    The last convolution is initialised to zero, so the block starts as the identity (Goyal et al. 2017, arXiv:1706.02677,
    section 5.1).

    Args:
        channels: C.
        norm: key of `NORMS`.
        activation: key of `ACTIVATIONS`.
        channel_attention: end the branch with `ChannelAttention`, as in SE-ResNet (arXiv:1709.01507, figure 3).
        spatial_attention: append `SpatialAttention` after it, the best order according to CBAM (arXiv:1807.06521, table 3).
    """

    def __init__(
        self, channels: int, norm: str, activation: str, channel_attention: bool = False, spatial_attention: bool = False
    ):
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        nn.init.kaiming_normal_(convs[0].weight, nonlinearity="relu")
        zero(convs[1])
        self.layers = nn.Sequential(
            *(layer for conv in convs for layer in (NORMS[norm](channels), ACTIVATIONS[activation](), conv)),
            *([ChannelAttention(channels)] if channel_attention else []),
            *([SpatialAttention()] if spatial_attention else []),
        )

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return h + self.layers(h)
