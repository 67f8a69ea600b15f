"""Pretrained autoencoders of diffusers, imported as a run folder or used as the start of a run."""

import logging
from pathlib import Path
from typing import Any

import torch
import yaml

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError, one_line
from flowergen.modules.image_model import ImageModel
from flowergen.modules.pretrained import LATENTS, PretrainedAutoencoder
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.nn.diffusers_autoencoder import DiffusersAutoencoder
from flowergen.picture_shape import PictureShape
from flowergen.quoting import HUB
from flowergen.runs.hub import CONFIG, WEIGHTS, downloaded, pinned
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.stages import read_pretrained

log = logging.getLogger(__name__)

WEIGHTS_SOURCE_KEY = "weights_of"  # key of a checkpoint without weights: the repository and the commit that they are in


def import_autoencoder(value: str, config: dict[str, Any], data: ImageDataModule, folder: Path) -> None:
    """Write a pretrained autoencoder as a run folder; with ``carry_autoencoder=false`` without its weights.

    Args:
        value: a repository of the hub, see ``runs.hub.pinned``, or a folder that ``save_pretrained`` has written.
        config: config of the run that uses it.
        data: data module of that run, set up.
        folder: folder to write; it must not exist.

    Raises:
        UserError: the files cannot be downloaded or read, or do not fit the pictures.
    """
    shape = PictureShape.from_config(config["data"])
    arguments: dict[str, Any] = {
        "image_size": shape.image_size,
        "image_channels": shape.channels,
        "seed": config["seed"],
        **read_pretrained(files_of(value, "autoencoder"), value, "autoencoder"),
    }
    module = PretrainedAutoencoder(**arguments)
    module.net.load_state_dict(_load(value, "autoencoder", arguments["kind"]).state_dict())
    content: dict[str, Any] = {"state_dict": module.state_dict(), "loops": {}, type(data).__qualname__: data.state_dict()}
    if not config["carry_autoencoder"]:
        content |= {"state_dict": {}, WEIGHTS_SOURCE_KEY: pinned(value, "autoencoder")}
    module.on_save_checkpoint(content)
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True)
    torch.save(content, run.checkpoints / "best.ckpt")
    inherited = {key: config[key] for key in ("seed", "paths", "data", "trainer")}
    without_parents = dict.fromkeys(("resume", "init", "autoencoder", "diffusion"))
    model = {"_target_": f"{PretrainedAutoencoder.__module__}.{PretrainedAutoencoder.__name__}", **arguments}
    run.config.write_text(
        yaml.safe_dump({"name": "pretrained", **without_parents, **inherited, "model": model}), encoding="utf-8"
    )


def files_of(value: str, key: str) -> Path:
    """Return the folder of the files of a pretrained autoencoder, ``key=value``, downloading them if necessary."""
    return downloaded(value, key, (CONFIG, WEIGHTS)) if value.startswith(HUB) else Path(value)


def weights_of(content: dict[str, Any], model: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint of this ``model``; those that it names by repository are downloaded if necessary.

    Raises:
        UserError: the checkpoint neither has nor names weights, or they cannot be downloaded or read.
    """
    if content["state_dict"]:
        return content["state_dict"]
    value, kind = content.get(WEIGHTS_SOURCE_KEY), model.get("kind")
    if kind not in LATENTS or not isinstance(value, str) or not value.startswith(HUB):
        raise UserError("the checkpoint has no weights: use another")
    net = _load(value, "autoencoder", kind)
    return {f"net.{name}": tensor for name, tensor in net.state_dict().items()}


def start_from_pretrained(value: str, module: ImageModel) -> None:
    """Copy the weights of a pretrained autoencoder, ``init=value``, to a VAE-GAN built for it, and to its moving average.

    Raises:
        UserError: the files cannot be downloaded or read, or belong to another network.
    """
    assert isinstance(module, VAEGANModule)
    assert module.pretrained is not None
    kind = module.pretrained["kind"]
    weights = DiffusersAutoencoder(_load(value, "init", kind), kind).state_dict()
    try:
        for net in (module.net, module.inference_net):
            net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"init={value}: {WEIGHTS} is of another network than model.pretrained of this run") from error
    log.info(f"starting from {value}: {kind} with {len(weights)} tensors")


def _load(value: str, key: str, kind: str) -> torch.nn.Module:
    """Return the pretrained autoencoder ``key=value``, of a class of ``LATENTS``, with its weights."""
    source = files_of(value, key)
    import diffusers  # slow to import

    options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:  # not the file itself: older ones, such as sd-vae-ft-mse's, have other names, which diffusers translates
        net, found = getattr(diffusers, kind).from_pretrained(source, **options)
    except Exception as error:  # missing, truncated, of other shapes
        raise UserError(f"{key}={value}: {WEIGHTS} cannot be loaded ({one_line(error)[:300]})") from error
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:  # diffusers only warns, and leaves them uninitialised
        raise UserError(f"{key}={value}: {WEIGHTS} does not fit config.json, such as {wrong[0]}: get both again")
    return net
