"""Stages of latent diffusion: prepare what a run needs from the previous stage, and store what sampling needs."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from flowergen.data.image_datamodule import ImageDataModule, evenly_spaced
from flowergen.errors import UserError, printable
from flowergen.evaluation.drawn_samples import cached_samples
from flowergen.evaluation.encoding import cached_features, cached_posteriors, feature_scale, in_parts, latent_scale, posteriors
from flowergen.evaluation.latent_store import num_stored, store_autoencoder_latents, store_latents
from flowergen.modules.decoder import DecoderModule
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.pretrained import PretrainedAutoencoder
from flowergen.modules.pretrained_weights import load_efficientnet
from flowergen.quoting import HUB
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.loading import checkpoint_to_load, load_run, read_checkpoint
from flowergen.runs.pretrained import files_of, import_autoencoder, weights_of
from flowergen.runs.run_folder import RunFolder, find_run, is_first_process
from flowergen.runs.sampling import fast_denoiser
from flowergen.runs.stages import origin, path_of_previous_stage, pretrained_folder, previous_stage, refuse_wrong_stage
from flowergen.runs.trainer import resolve_device

log = logging.getLogger(__name__)


def copy_previous_stage(config: dict[str, Any], run: RunFolder, data: ImageDataModule) -> None:
    """Copy the run of the previous stage into the run folder, so that the original may be deleted.

    A pretrained autoencoder is converted to a run folder there.

    Raises:
        UserError: there is no such run, or the pretrained autoencoder is unavailable.
    """
    previous = previous_stage(config)
    if previous is None or (run.path / previous[0]).is_dir():
        return
    pretrained = previous[0] == "autoencoder" and pretrained_folder(previous[1], previous[0]) is not None
    if not is_first_process():
        if pretrained:  # unlike a run, it cannot be loaded from elsewhere
            _wait_for(run.autoencoder)
        return
    partial = run.path / f"{previous[0]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if pretrained:
        if not any(line.startswith(("data=", "experiment=")) for line in run.read_overrides()):
            # a run would have named its data
            log.info(f"no data= was given, and {previous[1]} does not name its own: training on {data.name}")
        import_autoencoder(previous[1], config, data, partial)
    else:
        _copy_run(*previous, partial)
    partial.replace(run.path / previous[0])


def fetch_hub(config: dict[str, Any], run: RunFolder, resumed: bool) -> None:
    """Download what a run needs from the hub, in every process, so that missing files are reported before pictures are decoded.

    Args:
        config: the whole config.
        run: the run folder; what has been copied into it, or is stored in a checkpoint, is not downloaded.
        resumed: whether the run continues from a checkpoint.

    Raises:
        UserError: it cannot be downloaded, or carry_autoencoder=false does not apply to it.
    """
    needed = {"autoencoder": not run.autoencoder.is_dir(), "init": not resumed}
    for key in [key for key, missing in needed.items() if missing and str(config[key]).startswith(HUB)]:
        if pretrained_folder(config[key], key):
            files_of(config[key], key)
        elif key == "autoencoder" and not config["carry_autoencoder"]:
            raise UserError(
                f"carry_autoencoder=false is for autoencoders of diffusers, and {config[key]} is a run: leave it out"
            )


def _wait_for(folder: Path) -> None:
    """Wait at most ten minutes for a folder that the first process writes."""
    for _ in range(600):
        if folder.is_dir():
            return
        time.sleep(1)
    raise UserError(f"{folder} was not written by the first process within ten minutes: see its output")


def _copy_run(key: str, value: str | Path, folder: Path) -> None:
    """Copy the files needed to load a run, including those of the run nested in it."""
    source, checkpoint = find_run(value, key)
    path, stored = checkpoint_to_load(source, checkpoint), source.read_config()
    refuse_wrong_stage(key, str(value), stored)
    content = read_checkpoint(path)
    content["optimizer_states"] = []  # they take two thirds of the file
    content["state_dict"] = weights_of(content, stored["model"])
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    shutil.copyfile(source.config, folder / "config.yaml")
    previous = previous_stage(stored)
    if previous:
        _copy_run(previous[0], path_of_previous_stage(previous, source), folder / previous[0])


def prepare_latents(
    config: dict[str, Any], run: RunFolder, module: ImageModel, data: ImageDataModule, previous: LoadedModel | None
) -> None:
    """Prepare the latents of a diffusion model or the training samples of a decoder.

    For diffusion, encode the collection, set the module's latent scale from it, and store some latents for sampling. For a
    decoder, draw the samples that it is trained on.

    Raises:
        UserError: the previous stage was trained on pictures that this run holds out, or the alignment network is missing.
    """
    if previous is not None:
        _check_same_pictures(config, data, previous)
    if previous is not None and isinstance(module, DecoderModule):
        _prepare_samples(run, module, data, previous)
    if not isinstance(module, LatentDDPMModule):
        return
    rows = data.rows["train"]
    kept = evenly_spaced(rows, num_stored(module.latent_shape))
    if previous is None:
        latents = data.pictures[kept.tolist()].image / 127.5 - 1
    else:
        model = previous.module
        if module.latent_cache:
            moments = cached_posteriors(model, data, data.cache_dir)
            features = None
            if module.alignment_weight:
                net = load_efficientnet("lite0", "model.alignment_weight")
                features = cached_features(net, data, model.device, data.cache_dir)
                module.set_feature_scale(*feature_scale(features, rows))
            data.use_latents(*moments, features)
            parts, kept_parts = in_parts(moments, rows), in_parts(moments, kept)
        else:
            log.info(f"measuring the scale of the latents of {len(rows):,} pictures")
            parts = posteriors(model, data, rows, data.horizontal_flip, bar=is_first_process())
            kept_parts = posteriors(model, data, kept, flips=False, bar=is_first_process())
        module.set_latent_scale(*latent_scale(parts))
        latents = torch.cat([mean[:, 0] for mean, _ in kept_parts])
    if is_first_process():
        store_latents(run.latents, data, kept, latents, module.autoencoder_hash, None)


def _prepare_samples(run: RunFolder, module: DecoderModule, data: ImageDataModule, previous: LoadedModel) -> None:
    model, names = previous.module.denoising_model, [printable(name) for name in data.class_names]
    assert model is not None  # already on the device, unlike the decoder's module
    if list(previous.class_names) != names:
        raise UserError(
            f"the diffusion model has {len(previous.class_names)} classes, and {data.name} has {len(names)} or different ones: "
            "a decoder must be trained on pictures of the same classes"
        )
    net = fast_denoiser(previous, module.num_latents)
    module.use_samples(*cached_samples(model, data, module.num_latents, data.cache_dir, net))
    if is_first_process() and not run.latents.is_file():
        kept = evenly_spaced(data.rows["train"], num_stored(model.latent_shape))
        latents = torch.cat([mean[:, 0] for mean, _ in posteriors(model, data, kept, flips=False, bar=True)])
        store_latents(run.latents, data, kept, latents, model.autoencoder_hash, None)


def _check_same_pictures(config: dict[str, Any], data: ImageDataModule, previous: LoadedModel) -> None:
    theirs, ours = previous.config["data"], config["data"]
    what = "diffusion model" if previous.module.denoises else "autoencoder"
    same = previous.pictures == data.identity or theirs.get("_target_") != ours.get("_target_")
    if same or isinstance(previous.module, PretrainedAutoencoder):
        return
    if origin(theirs) == origin(ours):
        raise UserError(
            f"the pictures, labels or split of {data.name} have changed since the {what} was trained, so held-out pictures "
            f"may be its training pictures: restore the old data, or start with stage 1 on the new data"
        )
    log.warning(
        f"the {what} was trained on {origin(theirs)}: if these include pictures of {origin(ours)}, "
        "pictures that are held out here may be its training pictures"
    )


def store_for_sampling(config: dict[str, Any], run: RunFolder, module: ImageModel, data: ImageDataModule) -> None:
    """Store an autoencoder's latents and a prior fitted to them, computed with the weights that loading the run gives.

    Raises:
        UserError: the disk is full.
    """
    if module.sampling_model.denoises:  # diffusion runs store their latents before training
        return
    try:
        store_autoencoder_latents(run.latents, load_run(run.path, resolve_device(config["trainer"])).module, data)
    except OSError as error:
        raise UserError(
            f"{run.latents} cannot be written ({error.strerror}): make room, then continue with resume={run.path}"
        ) from error
