"""The PatchGAN discriminator: a map of logits, each for a patch of the picture."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from flowergen.nn.blocks import group_norm


class DiscriminatorOutput(NamedTuple):
    """The output of a discriminator.

    Attributes:
        logits: (N, K, h, w) float32, positive where a patch is taken for real; K = 1 for patches, the number of heads for a
            projected discriminator.
        features: (N, C, h', w') of each hidden layer of a patch discriminator, or the frozen ones that a projected one sees.
    """

    logits: Tensor
    features: list[Tensor]


def num_halvings_for(image_size: int) -> int:
    """Halvings whose receptive field is about a quarter of the picture, as 70 px are of 256 (arXiv:1611.07004, section 6.1.2).

    Args:
        image_size: S in px.

    >>> [(size, receptive_field(num_halvings_for(size))) for size in (32, 64, 128, 256, 512)]
    [(32, 16), (64, 16), (128, 34), (256, 70), (512, 142)]
    """
    return max(1, round(math.log2(image_size / 32)))


def logits_side(image_size: int, num_halvings: int) -> int:
    """Side of the map of logits; 0 or less where there are more halvings than the picture bears.

    Args:
        image_size: S in px.
        num_halvings: see `receptive_field`.
    """
    side = image_size
    for _ in range(num_halvings):
        side //= 2
    return side - 2  # two convolutions with a kernel of 4 and a border of 1


def receptive_field(num_halvings: int) -> int:
    """Side of the patch that one logit sees, in px.

    Args:
        num_halvings: stride-2 convolutions, before two of stride 1, all with a kernel of 4.
    """
    field = 1
    for stride in (1, 1, *[2] * num_halvings):  # from the logit outwards
        field = field * stride + (4 - stride)
    return field


class PowerIterations(nn.Module):
    """Spectral norms whose power iterations happen when they are asked for.

    At every forward pass, the result would depend on how often a step calls the network: with accumulation, in validation, for
    the other network.
    """

    @torch.no_grad()
    def update_spectral_norms(self) -> None:
        """One power iteration for each weight that is spectrally normalised; call it once for each optimiser step."""
        self._set_power_iterations(True)
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                module.weight  # noqa: B018  computing it is what iterates
        self._set_power_iterations(False)

    def train(self, mode: bool = True) -> "PowerIterations":
        """Nothing in it behaves differently in training."""
        super().train(mode)
        self._set_power_iterations(False)
        return self

    def _set_power_iterations(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, parametrize.ParametrizationList):
                module.train(on)


class PatchDiscriminator(PowerIterations):
    """Isola et al. 2017 (arXiv:1611.07004, section 3.2.2 and appendix 6.1.2), without BatchNorm, which looks across pictures.

    Args:
        channels: after the first layer; doubled by each layer, up to eight times.
        num_halvings: stride-2 convolutions, see `num_halvings_for`.
        norm: ``group``: GroupNorm after each hidden layer but the first; ``spectral``: every weight divided by its largest
            singular value (Miyato et al. 2018, arXiv:1802.05957), as estimated when `update_spectral_norms` was last called.
    """

    def __init__(self, channels: int, num_halvings: int, norm: Literal["group", "spectral"]):
        super().__init__()
        widths = [3, *(channels * min(2**i, 8) for i in range(num_halvings + 1))]
        self.hidden = nn.ModuleList()
        for i in range(num_halvings + 1):
            conv = nn.Conv2d(widths[i], widths[i + 1], 4, stride=2 if i < num_halvings else 1, padding=1)
            with_norm = norm == "group" and i > 0
            self.hidden.append(nn.Sequential(conv, *([group_norm(widths[i + 1])] if with_norm else []), nn.LeakyReLU(0.2)))
        self.to_logits = nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)
        if norm == "spectral":
            for module in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
                parametrizations.spectral_norm(module)
        self._set_power_iterations(False)

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            x: (N, 3, S, S) in [-1, 1].
        """
        features, h = [], x
        for layer in self.hidden:
            h = layer(h)
            features.append(h)
        return DiscriminatorOutput(self.to_logits(h).float(), features)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it, gradients pass through a module and none arrive at its parameters.

    Args:
        module: all of whose parameters want gradients outside.
    """
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
