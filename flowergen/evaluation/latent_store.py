"""Latents stored with a run for sampling without the data: latents.safetensors."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from flowergen.data.image_datamodule import ImageDataModule, evenly_spaced
from flowergen.errors import UserError
from flowergen.evaluation.encoding import posteriors
from flowergen.evaluation.latent_prior import LatentPrior, fit_latent_prior
from flowergen.files import replacing
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel
from flowergen.nn.posterior import Posterior
from flowergen.randomness import normal_per_sample

log = logging.getLogger(__name__)

MAX_LATENTS = 4096
MAX_VALUES = 2**23  # values of all stored latents together: 16 MB in half precision
MAX_FITTED = 8192  # pictures that the prior is fitted to


@dataclass(frozen=True)
class LatentStore:
    """Stored latents of the training split.

    Attributes:
        latents: (L, C, h, w) float32 posterior means of pictures evenly spread over the split.
        labels: (L,) int64, -1 if unlabelled.
        class_counts: (K,) int64 number of pictures per class.
        prior: model to sample latents from; None if the run samples with a diffusion model.
    """

    latents: Tensor
    labels: Tensor
    class_counts: Tensor
    prior: LatentPrior | None


def num_stored(shape: tuple[int, int, int]) -> int:
    """Return how many latents of this shape are stored."""
    return max(2, min(MAX_LATENTS, MAX_VALUES // math.prod(shape)))


def store_latents(
    path: Path, data: ImageDataModule, rows: np.ndarray, latents: Tensor, owner: str, prior: LatentPrior | None
) -> None:
    """Write the file of latents.

    Args:
        path: output file.
        data: the data module, set up.
        rows: (L,) indices of the stored pictures.
        latents: (L, C, h, w) their latents.
        owner: fingerprint of the network that encoded them.
        prior: see ``LatentStore``.
    """
    train_labels = data.pictures.labels[data.rows["train"]]
    counts = np.bincount(train_labels[train_labels >= 0], minlength=len(data.class_names))
    tensors = {
        "latents": latents.half().contiguous(),
        "labels": torch.from_numpy(data.pictures.labels[rows]),
        "class_counts": torch.from_numpy(counts),
        **(prior.tensors() if prior else {}),
    }
    with replacing(path) as partial:
        partial.write_bytes(save(tensors, metadata={"owner": owner}))  # save_file does not raise OSError on a full disk


def fit_to_pictures(
    model: ImageModel, data: ImageDataModule, rows: np.ndarray, bar: bool = False
) -> tuple[Tensor, LatentPrior | None]:
    """Encode pictures without augmentation and fit the prior to one draw z ~ q(z|x) per picture.

    Args:
        model: an autoencoder in eval mode.
        data: the data module, set up.
        rows: (L,) indices of training pictures.
        bar: see ``posteriors``.

    Returns:
        (L, C, h, w) posterior means, and the prior, or None if there is only one picture or the latents are not finite.
    """
    encoded = posteriors(model, data, rows, flips=False, bar=bar)
    mean, logvar = (torch.cat(parts)[:, 0] for parts in zip(*encoded, strict=True))
    eps = normal_per_sample(rows.tolist(), model.latent_shape, seed=model.seed, purpose="latent prior")
    z = Posterior(mean, logvar).sample(eps).flatten(1)
    if len(rows) == 1 or not z.isfinite().all():
        return mean, None
    return mean, fit_latent_prior(z, torch.from_numpy(data.pictures.labels[rows]), len(data.class_names))


def store_autoencoder_latents(path: Path, model: ImageModel, data: ImageDataModule) -> None:
    """Encode the training split, ``fit_to_pictures``, and write both with ``store_latents``."""
    rows = evenly_spaced(data.rows["train"], MAX_FITTED)
    log.info("storing latents of %s training pictures, to sample from", f"{len(rows):,}")
    mean, prior = fit_to_pictures(model, data, rows, bar=True)
    if prior is None:
        log.warning("no mixture model of the latents: %s", "only one picture" if len(rows) == 1 else "they are not finite")
    kept = evenly_spaced(np.arange(len(rows)), num_stored(model.latent_shape))
    store_latents(path, data, rows[kept], mean[torch.from_numpy(kept)], fingerprint(model.inference_net), prior)


def read_latents(path: Path, owner: str) -> LatentStore | None:
    """Read the file of ``store_latents``; None if there is none for these weights, because training is unfinished or continued.

    Args:
        path: path of the file.
        owner: fingerprint of the network that will decode the latents.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        store = LatentStore(
            tensors["latents"].float(), tensors["labels"], tensors["class_counts"], LatentPrior.from_tensors(tensors)
        )
        if store.latents.dim() != 4 or len(store.labels) != len(store.latents) or store.class_counts.dim() != 1:
            raise ValueError
        if store.prior and not store.prior.fits(store.latents[0].numel()):
            raise ValueError
    except Exception as error:  # tensors of unexpected shapes may raise anything
        raise UserError(f"{path} is damaged ({type(error).__name__}): restore it, or train the run to its end again") from error
    if metadata.get("owner") != owner:
        log.warning(f"{path} contains the latents of other weights, and is ignored")
        return None
    return store
