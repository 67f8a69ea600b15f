"""The two stages of latent diffusion: what a run takes from its autoencoder, and what it leaves to sample from."""

import logging
import shutil
from typing import Any

import torch

from flowergen.config.build import LoadedModel, checkpoint_to_load, load_run, read_checkpoint
from flowergen.config.command import is_first_process
from flowergen.config.run_folder import RunFolder, find_run
from flowergen.config.trainer import resolve_device
from flowergen.data.image_datamodule import ImageDataModule, spread
from flowergen.errors import UserError
from flowergen.evaluation.encoding import cached_features, cached_posteriors, feature_scale, in_parts, latent_scale, posteriors
from flowergen.evaluation.latent_store import num_stored, store_autoencoder_latents, store_latents
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.outside_weights import load_efficientnet

log = logging.getLogger(__name__)


def carry_autoencoder(config: dict[str, Any], run: RunFolder) -> None:
    """Copy what encodes and decodes into the run folder, as a run folder within: the original may go.

    Raises:
        UserError: there is none.
    """
    if config["autoencoder"] in (None, "none") or run.autoencoder.is_dir() or not is_first_process():
        return
    source, checkpoint = find_run(config["autoencoder"], "autoencoder")
    path = checkpoint_to_load(source, checkpoint)
    content = read_checkpoint(path)
    content["optimizer_states"] = []  # two thirds of the file
    partial = run.path / "autoencoder.partial"
    (partial / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(content, partial / "checkpoints" / "best.ckpt")
    shutil.copyfile(source.config, partial / "config.yaml")
    partial.replace(run.autoencoder)


def prepare_latents(
    config: dict[str, Any], run: RunFolder, module: ImageModel, data: ImageDataModule, autoencoder: LoadedModel | None
) -> None:
    """For diffusion: encode the collection, scale the module's latents by it, and keep some for sampling.

    Raises:
        UserError: the autoencoder was trained on pictures that this run holds out, or the alignment's network is missing.
    """
    if not isinstance(module, LatentDDPMModule):
        return
    rows = data.rows["train"]
    kept = spread(rows, num_stored(module.latent_shape))
    if autoencoder is None:
        latents = data.pictures[kept.tolist()].image / 127.5 - 1
    else:
        _check_same_pictures(config, data, autoencoder)
        model = autoencoder.module
        if module.latent_cache:
            moments = cached_posteriors(model, data, data.cache_dir)
            features = None
            if module.alignment_weight:
                net = load_efficientnet("lite0", "model.alignment_weight")
                features = cached_features(net, data, model.device, data.cache_dir)
                module.set_feature_scale(*feature_scale(features, rows))
            data.feed_latents(*moments, features)
            parts, kept_parts = in_parts(moments, rows), in_parts(moments, kept)
        else:
            log.info(f"measuring the scale of the latents of {len(rows):,} pictures")
            parts, kept_parts = posteriors(model, data, rows, data.horizontal_flip), posteriors(model, data, kept, False)
        module.set_latent_scale(*latent_scale(parts))
        latents = torch.cat([mean[:, 0] for mean, _ in kept_parts])
    if is_first_process():
        store_latents(run.latents, data, kept, latents, module.autoencoder_hash, None)


def _check_same_pictures(config: dict[str, Any], data: ImageDataModule, autoencoder: LoadedModel) -> None:
    theirs, ours = autoencoder.config["data"], config["data"]
    if autoencoder.pictures == data.identity or theirs.get("_target_") != ours.get("_target_"):
        return
    if theirs.get("root") == ours.get("root"):
        raise UserError(
            f"{data.name} has other pictures, labels or another split than when the autoencoder was trained, so that held-out "
            "ones may be its training pictures: bring the old ones back, or train an autoencoder on these"
        )
    log.warning(
        f"the autoencoder was trained on {theirs.get('root')}: if pictures of {ours.get('root')} are among those, "
        "what is held out here may be what it was trained on"
    )


def store_what_sampling_needs(config: dict[str, Any], run: RunFolder, module: ImageModel, data: ImageDataModule) -> None:
    """Of an autoencoder: latents and a prior fitted to them, of the weights that loading the run gives.

    Raises:
        UserError: the disk is full.
    """
    if isinstance(module, LatentDDPMModule):  # which has stored its own before it began
        return
    try:
        store_autoencoder_latents(run.latents, load_run(run.path, resolve_device(config["trainer"])).module, data)
    except OSError as error:
        raise UserError(f"{run.latents} cannot be written ({error.strerror}): make room, then resume={run.path}") from error
