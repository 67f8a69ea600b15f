"""Turn a pretrained autoencoder of diffusers into a run folder, which later commands load as any other."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from flowergen.config.overrides import HUB
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError, one_line
from flowergen.modules.pretrained import LATENTS, PretrainedAutoencoder
from flowergen.runs.run_folder import RunFolder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def import_autoencoder(value: str, config: dict[str, Any], data: ImageDataModule, folder: Path) -> None:
    """Write a pretrained autoencoder as a run folder.

    Args:
        value: ``hub:OWNER/NAME``, ``hub:OWNER/NAME/SUBFOLDER``, or a folder that ``save_pretrained`` has written.
        config: of the run that uses it.
        data: its data module, set up.
        folder: to write to; it must not exist.

    Raises:
        UserError: the files cannot be downloaded or read, or do not fit the pictures.
    """
    import diffusers  # slow to import

    source = _downloaded(value) if value.startswith(HUB) else Path(value)
    try:
        stored = json.loads((source / "config.json").read_text(encoding="utf-8"))
        kind, arguments = stored["_class_name"], {k: v for k, v in stored.items() if not k.startswith("_")}
        model = {
            "_target_": f"{PretrainedAutoencoder.__module__}.{PretrainedAutoencoder.__name__}",
            "image_size": config["data"]["image_size"],
            "seed": config["seed"],
            "kind": kind,
            "config": arguments,
            "source": value,
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"autoencoder={value}: its config.json cannot be read ({one_line(error)})") from error
    module = PretrainedAutoencoder(**{key: each for key, each in model.items() if key != "_target_"})
    given = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:  # not the file itself: older ones, such as sd-vae-ft-mse's, have other names, which diffusers translates
        net, found = getattr(diffusers, kind).from_pretrained(source, **given)
    except Exception as error:  # missing, truncated, of other shapes
        raise UserError(f"autoencoder={value}: {WEIGHTS} cannot be loaded ({one_line(error)[:300]})") from error
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:  # diffusers only warns, and would leave them uninitialised
        raise UserError(f"autoencoder={value}: {WEIGHTS} does not fit config.json, such as {wrong[0]}: get both again")
    module.net.load_state_dict(net.state_dict())
    content: dict[str, Any] = {"state_dict": module.state_dict(), "loops": {}, type(data).__qualname__: data.state_dict()}
    module.on_save_checkpoint(content)
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True)
    torch.save(content, run.checkpoints / "best.ckpt")
    carried = {key: config[key] for key in ("seed", "paths", "data", "trainer")}
    nothing = dict.fromkeys(("resume", "init", "autoencoder", "diffusion"))
    run.config.write_text(yaml.safe_dump({"name": "pretrained", **nothing, **carried, "model": model}), encoding="utf-8")


def _downloaded(value: str) -> Path:
    """Return the folder of the files of ``hub:OWNER/NAME[/SUBFOLDER]``, downloaded unless they were before."""
    from huggingface_hub import snapshot_download

    owner, name, *subfolder = value.removeprefix(HUB).split("/")
    below = "/".join([*subfolder, ""])
    files = [f"{below}config.json", f"{below}{WEIGHTS}"]
    try:
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=files)) / below
    except Exception as error:  # huggingface_hub, requests and the file system raise various exceptions
        raise UserError(
            f"autoencoder={value} cannot be downloaded ({type(error).__name__}): put {' and '.join(files)} of "
            f"https://huggingface.co/{owner}/{name} into a folder, and give it as autoencoder=FOLDER; it must be one of "
            f"{', '.join(LATENTS)}"
        ) from error
