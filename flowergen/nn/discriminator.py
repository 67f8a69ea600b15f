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
        logits: (N, K, h, w) float32, positive for patches classified as real; K = 1 for a patch discriminator; K is the number
            of maps and h = w = 4 for a projected one.
        features: (N, C, h', w') of each hidden layer of a patch discriminator, or the frozen input features of a projected one.
    """

    logits: Tensor
    features: list[Tensor]


def num_halvings_for(short_side: int) -> int:
    """Return the halvings for a receptive field of about a quarter of the pictures' short side in px, as 70 of 256 px in
    arXiv:1611.07004, section 6.1.2.

    >>> [(size, receptive_field(num_halvings_for(size))) for size in (32, 64, 128, 256, 512)]
    [(32, 16), (64, 16), (128, 34), (256, 70), (512, 142)]
    """
    return max(1, round(math.log2(short_side / 32)))


def logits_side(short_side: int, num_halvings: int) -> int:
    """Return the short side of the map of logits for pictures with one of ``short_side`` px; 0 or less if that is too small."""
    return short_side // 2**num_halvings - 2  # two convolutions with a kernel of 4 and a padding of 1


def receptive_field(num_halvings: int) -> int:
    """Return the side of the receptive field of a logit, in px.

    Args:
        num_halvings: number of stride-2 convolutions, before two of stride 1, all with a kernel of 4.
    """
    return 9 * 2**num_halvings - 2  # from the logit outwards: 7 px, and 2 f + 2 before a convolution of stride 2


class PowerIterations(nn.Module):
    """Module with spectral norms whose power iterations run only on request.

    If they ran in every forward pass, the result would depend on how often a step calls the network: with gradient
    accumulation, in validation, for the loss of the other network.
    """

    @torch.no_grad()
    def update_spectral_norms(self) -> None:
        """Run one power iteration for each spectrally normalised weight; call this once per optimiser step."""
        self._set_power_iterations(True)
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                module.weight  # noqa: B018  computing it runs the iteration
        self._set_power_iterations(False)

    def train(self, mode: bool = True) -> "PowerIterations":
        """Set the mode without enabling power iterations: the network behaves the same in training."""
        super().train(mode)
        self._set_power_iterations(False)
        return self

    def _set_norm(self, norm: Literal["group", "spectral"]) -> None:
        """Normalise the weights of all convolutions with ``spectral``, and disable power iterations."""
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions if norm == "spectral" else []:
            parametrizations.spectral_norm(convolution)
        self._set_power_iterations(False)

    def _set_power_iterations(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, parametrize.ParametrizationList):
                module.train(on)


class PatchDiscriminator(PowerIterations):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004, sections 3.2.2 and 6.1.2) without BatchNorm, which mixes pictures.

    Args:
        channels: channels after the first layer; doubled by each further layer, up to eight times.
        num_halvings: number of stride-2 convolutions, see `num_halvings_for`.
        norm: ``group``: GroupNorm after each hidden layer except the first; ``spectral``: every weight divided by its largest
            singular value (Miyato et al. 2018, arXiv:1802.05957), as estimated when `update_spectral_norms` was last called.
        image_channels: channels of the pictures.
    """

    def __init__(self, channels: int, num_halvings: int, norm: Literal["group", "spectral"], image_channels: int = 3):
        super().__init__()
        widths = [image_channels, *(channels * min(2**i, 8) for i in range(num_halvings + 1))]
        self.hidden = nn.ModuleList()
        for i in range(num_halvings + 1):
            conv = nn.Conv2d(widths[i], widths[i + 1], 4, stride=2 if i < num_halvings else 1, padding=1)
            with_norm = norm == "group" and i > 0
            self.hidden.append(nn.Sequential(conv, *([group_norm(widths[i + 1])] if with_norm else []), nn.LeakyReLU(0.2)))
        self.to_logits = nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)
        self._set_norm(norm)

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Classify patches of pictures (N, C, H, W) in [-1, 1] as real or fake."""
        features, h = [], x
        for layer in self.hidden:
            h = layer(h)
            features.append(h)
        return DiscriminatorOutput(self.to_logits(h).float(), features)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Context manager in which gradients pass through a module but are not computed for its parameters.

    Outside of the context, all of its parameters require gradients.
    """
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
