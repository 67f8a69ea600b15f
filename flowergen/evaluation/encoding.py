"""Latents and features of whole data sets."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowergen.data.cache import open_or_build, sync, write_header
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.progress_bar import num_pictures, with_progress_bar
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel
from flowergen.nn.efficientnet import EfficientNetLite, feature_shape_for
from flowergen.picture_shape import PictureShape

log = logging.getLogger(__name__)

BATCH_VALUES = 64 * 64**2  # pixels encoded at a time
Moments = tuple[np.ndarray, np.ndarray]  # mean and logvar, each (M, F, C, h, w) float32
Encode = Callable[[Tensor], Iterable[Tensor]]  # (N, C, H, W) in [0, 1] -> parts, each (N, ...)


def batch_of(shape: PictureShape) -> int:
    """Return how many pictures of this shape are encoded at a time."""
    return max(1, BATCH_VALUES // (shape.height * shape.width))


def posteriors(
    model: ImageModel, data: ImageDataModule, rows: np.ndarray, flips: bool, bar: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """Encode pictures to q(z|x), one batch at a time.

    Args:
        model: an autoencoder in eval mode.
        data: the data module, set up.
        rows: indices of the pictures.
        flips: whether to encode their mirror images as well.
        bar: whether to show a progress bar, which training has of its own.

    Yields:
        mean and logvar, each (N, F, C, h, w) float32 on the CPU, F = 2 with flips, else 1.
    """
    parts = _encoded_batches(model.encode, data, rows, flips, model.device)
    yield from with_progress_bar("encoding", parts, len(rows), size=num_pictures) if bar else parts


def cached_posteriors(model: ImageModel, data: ImageDataModule, cache_dir: Path) -> Moments:
    """Encode all pictures and, if training flips them, their mirror images to q(z|x), once for all processes and runs.

    Args:
        model: an autoencoder in eval mode.
        data: the data module, set up.
        cache_dir: the folder of all caches.

    Returns:
        mean and logvar, read-only memory maps (M, F, C, h, w) float32.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    identity, names = fingerprint(model.inference_net), ("mean", "logvar")
    mean, logvar = _cached("latents", identity, names, model.latent_shape, "<f4", model.encode, data, model.device, cache_dir)
    return mean, logvar


def cached_features(net: EfficientNetLite, data: ImageDataModule, device: torch.device, cache_dir: Path) -> np.ndarray:
    """Compute the last stage output of a frozen network on a device, cached and with the errors of ``cached_posteriors``.

    Returns:
        A read-only memory map (M, F, K, h, w) float16.
    """
    net.to(device)
    names, shape = ("features",), feature_shape_for(data.picture_shape)
    (features,) = _cached("features", fingerprint(net), names, shape, "<f2", lambda x: [net(x)[-1]], data, device, cache_dir)
    return features


@torch.inference_mode()
def _encoded_batches(
    encode: Encode, data: ImageDataModule, rows: np.ndarray, flips: bool, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the outputs of ``encode`` for pictures and mirror images, each (N, F, ...) float32 on the CPU."""
    batch_size = batch_of(data.picture_shape)
    for first in range(0, len(rows), batch_size):
        x = data.pictures[rows[first : first + batch_size].tolist()].image.to(device).float().div_(255)
        variants = [encode(x), encode(x.flip(-1))] if flips else [encode(x)]
        yield tuple(torch.stack(parts, dim=1).float().cpu() for parts in zip(*variants, strict=True))


def _cached(
    what: str,
    identity: str,
    names: Sequence[str],
    shape: Sequence[int],
    dtype: str,
    encode: Encode,
    data: ImageDataModule,
    device: torch.device,
    cache_dir: Path,
) -> list[np.ndarray]:
    """Return the outputs of ``encode`` from a cache folder, one array (M, F, *shape) per name."""
    num, flips = len(data.pictures), data.horizontal_flip
    whole = (num, 1 + flips, *shape)
    key = blake2b(f"{identity}/{data.pixels}/{flips}".encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{data.name}_{what}_{key[:16]}"

    def open_() -> list[np.ndarray] | None:
        if not folder.exists():
            return None
        try:
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
            found = (json.loads((folder / "meta.json").read_text())["key"], [(a.shape, a.dtype) for a in arrays])
            if found != (key, [(whole, np.dtype(dtype))] * len(names)):
                raise ValueError(f"not the expected {what}: {found}")
        except Exception as error:  # json and numpy may raise anything on damaged files
            log.warning("%s is damaged (%s): encoding again", folder, error)
            return None
        return arrays

    def build(temporary: Path) -> None:
        log.info("encoding %s pictures to %s of %s, once", f"{num:,}", what, " x ".join(map(str, shape)))
        start = time.perf_counter()
        with ExitStack() as stack:
            files = [stack.enter_context(open(temporary / f"{name}.npy", "wb")) for name in names]
            for file in files:
                write_header(file, dtype, whole)
            for parts in with_progress_bar(
                "encoding", _encoded_batches(encode, data, np.arange(num), flips, device), num, size=num_pictures
            ):
                for file, part in zip(files, parts, strict=True):
                    file.write(part.numpy().astype(dtype, copy=False).tobytes())
            for file in files:
                sync(file)
        with open(temporary / "meta.json", "wb") as file:
            file.write(json.dumps({"key": key}).encode())
            sync(file)
        seconds = time.perf_counter() - start
        log.info("encoded them in %.1f s, %.0f pictures/s, into %s", seconds, num * (1 + flips) / seconds, folder)

    num_bytes = len(names) * np.dtype(dtype).itemsize * int(np.prod(whole))
    return open_or_build(folder, open_, build, f"the {what} of {num:,} pictures", num_bytes=num_bytes)


def in_parts(arrays: Sequence[np.ndarray], rows: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """Yield these rows of cached posteriors or features in batches, like ``posteriors``."""
    for first in range(0, len(rows), 1024):
        yield tuple(torch.from_numpy(array[rows[first : first + 1024]]) for array in arrays)


def latent_scale(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of z ~ q(z|x) for each channel, over pictures, mirror images and positions.

    var z = var mu + mean sigma^2, the law of total variance.

    Args:
        parts: mean and logvar of the training split, (N, F, C, h, w) each.

    Returns:
        (C,) each, float32.
    """
    return _mean_and_std((mean, logvar.double().exp()) for mean, logvar in parts)


def feature_scale(features: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of features (M, F, K, h, w) in these rows as ``latent_scale`` does, (K,) each."""
    return _mean_and_std((part, torch.zeros(1)) for (part,) in in_parts([features], rows))


def _mean_and_std(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation for each C of (N, F, C, h, w) values, each with its own variance."""
    dims, total, square, count = (0, 1, 3, 4), torch.zeros(1), torch.zeros(1), 0
    for values, variance in parts:
        total = total + values.double().sum(dims)  # (C,)
        square = square + (values.double().square() + variance).sum(dims)  # (C,)
        count += values.numel() // values.shape[2]
    mu = total / count
    return mu.float(), (square / count - mu.square()).sqrt().clamp_min(1e-6).float()
