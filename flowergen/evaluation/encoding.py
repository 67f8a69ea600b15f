"""A whole collection as latents."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowergen.data.cache import built_once, sync, write_header
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)

BATCH_VALUES = 64 * 64**2  # pixels of the pictures that are encoded at a time
Moments = tuple[np.ndarray, np.ndarray]  # mean and logvar, each (M, F, C, h, w) float32


def batch_of(image_size: int) -> int:
    """How many pictures of a size are encoded at a time."""
    return max(1, BATCH_VALUES // image_size**2)


@torch.inference_mode()
def posteriors(model: ImageModel, data: ImageDataModule, rows: np.ndarray, flips: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """q(z|x) of pictures, a batch at a time.

    Args:
        model: an autoencoder in eval mode.
        data: set up.
        rows: of the pictures.
        flips: of their mirror images as well.

    Yields:
        mean and logvar, each (N, F, C, h, w) float32 on the CPU, F = 2 with flips, else 1.
    """
    batch_size = batch_of(data.image_size)
    for first in range(0, len(rows), batch_size):
        x = data.pictures[rows[first : first + batch_size].tolist()].image.to(model.device).float().div_(255)
        variants = [model.encode(x), model.encode(x.flip(-1))] if flips else [model.encode(x)]
        mean, logvar = (torch.stack(moments, dim=1).float().cpu() for moments in zip(*variants, strict=True))
        yield mean, logvar


def cached_posteriors(model: ImageModel, data: ImageDataModule, cache_dir: Path) -> Moments:
    """q(z|x) of all pictures and, where training flips them, of their mirror images: encoded once for every process and run.

    Args:
        model: an autoencoder in eval mode.
        data: set up.
        cache_dir: the folder of all caches.

    Returns:
        mean and logvar, read-only memory maps (M, F, C, h, w) float32.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    num, flips = len(data.pictures), data.horizontal_flip
    shape = (num, 1 + flips, *model.latent_shape)
    identity = f"{fingerprint(model.inference_net)}/{data.pixels}/{flips}"
    key = blake2b(identity.encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{data.name}_latents_{key[:16]}"

    def open_() -> Moments | None:
        if not folder.exists():
            return None
        try:
            mean, logvar = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ("mean.npy", "logvar.npy"))
            found = (json.loads((folder / "meta.json").read_text())["key"], mean.shape, logvar.shape, mean.dtype, logvar.dtype)
            if found != (key, shape, shape, np.float32, np.float32):
                raise ValueError(f"not the expected latents: {found}")
        except Exception as error:  # damaged bytes make json and numpy raise whatever they please
            log.warning("%s is damaged (%s): encoding again", folder, error)
            return None
        return mean, logvar

    def build(temporary: Path) -> None:
        log.info("encoding %s pictures to latents of %s, once", f"{num:,}", " x ".join(map(str, model.latent_shape)))
        start = time.perf_counter()
        with open(temporary / "mean.npy", "wb") as means, open(temporary / "logvar.npy", "wb") as logvars:
            for file in (means, logvars):
                write_header(file, "<f4", shape)
            for moments in posteriors(model, data, np.arange(num), flips):
                for file, moment in zip((means, logvars), moments, strict=True):
                    file.write(moment.numpy().tobytes())
            sync(means)
            sync(logvars)
        with open(temporary / "meta.json", "wb") as file:
            file.write(json.dumps({"key": key}).encode())
            sync(file)
        seconds = time.perf_counter() - start
        log.info("encoded them in %.1f s, %.0f pictures/s, into %s", seconds, num * (1 + flips) / seconds, folder)

    return built_once(folder, open_, build, f"the latents of {num:,} pictures", num_bytes=2 * 4 * int(np.prod(shape)))


def in_parts(moments: Moments, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Cached posteriors as ``posteriors`` yields them."""
    for first in range(0, len(rows), 1024):
        mean, logvar = (torch.from_numpy(moment[rows[first : first + 1024]]) for moment in moments)
        yield mean, logvar


def latent_scale(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of z ~ q(z|x) for each channel, over pictures, mirror images and positions.

    var z = var mu + mean sigma^2, the law of total variance.

    Args:
        parts: of the training split, mean and logvar, (N, F, C, h, w) each.

    Returns:
        (C,) each, float32.
    """
    dims, total, square, count = (0, 1, 3, 4), torch.zeros(1), torch.zeros(1), 0
    for mean, logvar in parts:
        total = total + mean.double().sum(dims)  # (C,)
        square = square + (mean.double().square() + logvar.double().exp()).sum(dims)  # (C,)
        count += mean.numel() // mean.shape[2]
    mu = total / count
    return mu.float(), (square / count - mu.square()).sqrt().clamp_min(1e-6).float()
