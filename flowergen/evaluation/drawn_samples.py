"""Samples of a diffusion model as latents, drawn once as training data."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowergen.data.cache import open_or_build, sync, write_header
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.progress_bar import num_pictures, with_progress_bar
from flowergen.errors import UserError
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.evaluation.sampling import NO_CLASS, diffusion_sampler, labels_by_frequency
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.latent_ddpm import LatentDDPMModule

log = logging.getLogger(__name__)

CHUNK_SIZE = 128
FIRST_INDEX = 2**40  # first sample number, beyond those of any command: evaluated samples are never trained on


def cached_samples(
    model: LatentDDPMModule, data: ImageDataModule, num: int, cache_dir: Path, net: FastNetwork | None = None
) -> tuple[Tensor, Tensor]:
    """Draw samples with the model's own ``sampling`` and training's class frequencies, once for all processes and runs.

    Args:
        model: a model in eval mode.
        data: the data module, set up.
        num: number of samples P.
        cache_dir: the folder of all caches.
        net: see ``diffusion_sampler``.

    Returns:
        (P, C, h, w) float32 latents in the autoencoder's units, and (P,) int64 classes, K for none.

    Raises:
        UserError: the disk is full, the folder cannot be written, or a sample is not finite.
    """
    train_labels = data.pictures.labels[data.rows["train"]]
    counts = torch.from_numpy(np.bincount(train_labels[train_labels >= 0], minlength=model.num_classes))
    labels = labels_by_frequency(num, model.num_classes, counts if counts.sum() else None, model.seed)
    whole = (num, *model.latent_shape)
    drawn_by = [fingerprint(model.inference_net), model.autoencoder_hash, asdict(model.sampling), model.seed, labels.tolist()]
    drawn_by += ["bf16"] if net and net.bf16 else []
    key = blake2b(json.dumps(drawn_by).encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{data.name}_samples_{key[:16]}"

    def open_() -> np.ndarray | None:
        if not folder.exists():
            return None
        try:
            latents = np.load(folder / "latents.npy", allow_pickle=False)
            found = (json.loads((folder / "meta.json").read_text())["key"], latents.shape, latents.dtype)
            if found != (key, whole, np.dtype("<f4")):
                raise ValueError(f"not the expected samples: {found}")
        except Exception as error:  # json and numpy may raise anything on damaged files
            log.warning("%s is damaged (%s): drawing again", folder, error)
            return None
        return latents

    def build(temporary: Path) -> None:
        log.info("drawing %s samples to train on, once", f"{num:,}")
        with open(temporary / "latents.npy", "wb") as file:
            write_header(file, "<f4", whole)
            for latents in with_progress_bar("drawing", _drawn(model, labels, net), num, size=num_pictures):
                if not np.isfinite(latents).all():
                    raise UserError("the diffusion model's samples are not finite: train it again with a lower learning rate")
                file.write(latents.tobytes())
            sync(file)
        (temporary / "meta.json").write_text(json.dumps({"key": key}))

    found = open_or_build(folder, open_, build, f"{num:,} samples of {data.name}", 4 * int(np.prod(whole)))
    return torch.from_numpy(found), torch.where(labels == NO_CLASS, model.num_classes, labels)


@torch.inference_mode()
def _drawn(model: LatentDDPMModule, labels: Tensor, net: FastNetwork | None) -> Iterator[np.ndarray]:
    sampler = diffusion_sampler(model, model.sampling, model.seed, net)
    for first in range(0, len(labels), CHUNK_SIZE):
        part = labels[first : first + CHUNK_SIZE]
        latents = sampler.draw(range(FIRST_INDEX + first, FIRST_INDEX + first + len(part)), part)
        yield latents.float().cpu().numpy().astype("<f4")
