"""Models small enough for a test, with weights that do something from the start."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.nn.posterior import Posterior
from flowergen.nn.unet import UNet
from flowergen.randomness import initialisation

SIZE = 16
CHANNELS = 2  # of a spatial latent
SAMPLING: dict[str, Any] = {
    "sampler": "dpmpp_2m",
    "steps": 4,
    "guidance_scale": 2.0,
    "guidance_interval": [0.0, 1.0],
    "eta": 0.0,
}
DIFFUSION: dict[str, Any] = {
    "image_size": SIZE,
    "seed": 0,
    "num_classes": 3,
    "network": partial(UNet, channels=8, multipliers=[1, 1], num_blocks=1, attention_resolutions=[2], head_channels=8),
    "objective": "v",
    "schedule": "cosine",
    "num_timesteps": 100,
    "zero_terminal_snr": False,
    "time_sampling": "uniform",
    "weighting": "none",
    "min_snr_gamma": 5.0,
    "class_dropout": 0.1,
    "alignment_weight": 0.0,
    "latent_cache": True,
    "sampling": SAMPLING,
    "optimizer": partial(torch.optim.Adam, lr=2e-3),
    "lr_schedule": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": None,
}


class TinyAutoencoder(ImageModel):
    """One layer each way; latents (2, 4, 4), or (32, 1, 1) if flat. Counts the batches that it encodes."""

    best_metric, best_mode = "none", "max"

    def __init__(self, seed: int = 0, flat: bool = False):
        super().__init__(SIZE, seed)
        self.flat, self.num_encoded = flat, 0
        with initialisation(seed):
            self.encoder, self.decoder = nn.Conv2d(3, 2 * CHANNELS, 4, stride=4), nn.ConvTranspose2d(CHANNELS, 3, 4, stride=4)

    @property
    def inference_net(self) -> nn.Module:
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = SIZE // 4
        return (CHANNELS * side**2, 1, 1) if self.flat else (CHANNELS, side, side)

    def encode(self, x: Tensor) -> Posterior:
        self.num_encoded += 1
        mean, logvar = (3 * self.encoder(x)).chunk(2, dim=1)
        return Posterior(mean.reshape(-1, *self.latent_shape), logvar.reshape(-1, *self.latent_shape))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.reshape(-1, CHANNELS, SIZE // 4, SIZE // 4)).sigmoid()

    def summary(self) -> str:
        return "tiny"


def diffusion(awake: bool = True, on_pixels: bool = False, **changes: Any) -> LatentDDPMModule:
    """A diffusion model.

    Args:
        awake: give the weights that start at zero a value, and classes that differ.
        on_pixels: no autoencoder.
        **changes: of DIFFUSION.
    """
    if changes.get("objective") == "eps" and not on_pixels:
        changes = {"schedule": "linear", **changes}  # the only one that goes with it there
    autoencoder = changes.pop("autoencoder", None if on_pixels else TinyAutoencoder())
    with initialisation(0):
        module = LatentDDPMModule(**{**DIFFUSION, "autoencoder": autoencoder, **changes})
    if awake:
        wake(module.net)
        if module.ema is not None:
            module.ema.net.load_state_dict(module.net.state_dict())
    return module.eval()


def wake(net: nn.Module) -> None:
    """Give the weights that start at zero a value, and classes that differ."""
    with initialisation(1), torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        for part in net.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight)


def drawn(cache_dir: Path, **changes: Any) -> ProceduralDataModule:
    """Forty pictures of three classes, set up: 32 to train, 4 to validate, 4 to test."""
    options: dict[str, Any] = {
        "name": "tiny",
        "num_images": 40,
        "num_classes": 3,
        "drawing_seed": 0,
        "image_size": SIZE,
        "batch_size": 8,
        "split": "stratified",
        "split_seed": 0,
        "horizontal_flip": True,
        "on_corrupt": "error",
        "cache_dir": cache_dir,
        "seed": 0,
    }
    data = ProceduralDataModule(**{**options, **changes})
    data.setup()
    return data
