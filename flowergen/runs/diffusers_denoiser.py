"""The denoiser of a latent diffusion run as a model of diffusers. ``runs.diffusers_folder`` writes it next to its weights.

Source: flowergen, MIT licence.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from flowergen.nn.dit import DiT
from flowergen.nn.unet import UNet


class Denoiser(ModelMixin, ConfigMixin):
    """A denoiser, and the scale of the latents that it was trained on.

    Args:
        network: ``DiT`` or ``UNet``.
        arguments: arguments of the network, without ``shape`` and ``num_classes``.
        shape: (C, h, w) of a latent.
        class_names: names of the K classes by label.
    """

    @register_to_config
    def __init__(self, network: str, arguments: dict[str, Any], shape: Sequence[int], class_names: Sequence[str]):
        super().__init__()
        build: Any = {"DiT": DiT, "UNet": UNet}[network]
        self.net = build(shape=tuple(shape), num_classes=len(class_names), **arguments)
        self.register_buffer("latent_mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("latent_std", torch.ones(shape[0], 1, 1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """(N, C, h, w), (N,) times and (N,) labels, K for no class -> (N, C, h, w), float32 whatever the weights are."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x, t, label)
