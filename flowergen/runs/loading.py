"""Load trained models and checkpoints from run folders."""

import json
import operator
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError, one_line, printable
from flowergen.files import replacing
from flowergen.lightning_internals import EPOCHS_DONE_KEYS
from flowergen.modules.image_model import ImageModel
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.pretrained import weights_of
from flowergen.runs.run_folder import RunFolder, find_run
from flowergen.runs.stages import path_of_previous_stage, previous_stage, refuse_wrong_stage

CHECKPOINT_KEYS = ("state_dict", "loops", "flowergen")


def load_run(run: str | Path, device: str = "cpu") -> LoadedModel:
    """Load a run; see ``flowergen.load``."""
    folder, checkpoint = find_run(run)
    config = folder.read_config()
    path = checkpoint_to_load(folder, checkpoint)
    content = read_checkpoint(path)
    with _mismatch_as_user_error(path, folder):
        pictures, class_names = _trained_on(content, config, path)
        previous = load_previous_stage(config, folder)
        module = build_module(config, len(class_names), previous.module if previous else None)
        module.on_load_checkpoint(content)
        module.load_state_dict(weights_of(content, config["model"]))
        if previous and module.sampling_model is not module:  # sampling uses the diffusion model with this decoder
            module, config = module.sampling_model, previous.config | {key: config[key] for key in ("data", "paths")}
    return LoadedModel(module.eval().to(device), config, pictures, class_names, folder)


def class_names_of(run: str | Path) -> list[str]:
    """Return the class names of a run by label, empty without labels, without loading the model; errors as in ``load``."""
    folder, checkpoint = find_run(run)
    path = checkpoint_to_load(folder, checkpoint)
    content = read_checkpoint(path, mmap=True)
    with _mismatch_as_user_error(path, folder):
        return _trained_on(content, folder.read_config(), path)[1]


@contextmanager
def _mismatch_as_user_error(path: Path, folder: RunFolder) -> Iterator[None]:
    """Raise the errors of a checkpoint that does not fit the run's config as ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # manually edited files may raise anything
        raise UserError(f"{path} does not fit {folder.config}: {type(error).__name__}: {one_line(error)}") from error


def _trained_on(content: dict[str, Any], config: dict[str, Any], path: Path) -> tuple[str, list[str]]:
    """Return the hash of the training data and the class names by label, as the checkpoint records them."""
    data_class = config["data"]["_target_"].rpartition(".")[2]  # Lightning's key for the data module's state
    pictures, class_names = content[data_class]["pictures"], content[data_class].get("class_names", [])
    if not isinstance(class_names, list) or any(not isinstance(text, str) for text in (pictures, *class_names)):
        raise UserError(f"{path} does not record what it was trained on: use another")
    return pictures, [printable(name) for name in class_names]


def checkpoint_to_load(folder: RunFolder, named: Path | None) -> Path:
    """Return the checkpoint to load: the named, best or last one, or that of a shared run; a ``UserError`` if there is none."""
    unnamed = [folder.checkpoints / "best.ckpt", folder.checkpoints / "last.ckpt", folder.shared_weights]
    path = next((candidate for candidate in ([named] if named else unnamed) if candidate.is_file()), None)
    if path is None:
        raise UserError(f"{folder.path} has no checkpoint yet: let it train for an epoch first")
    return path


def load_previous_stage(config: dict[str, Any], run: RunFolder, device: str | torch.device = "cpu") -> LoadedModel | None:
    """Load the autoencoder or diffusion model that a run builds on, with the errors of ``flowergen.load``; None without one."""
    previous = previous_stage(config)
    if previous is None:
        return None
    key, path = previous[0], path_of_previous_stage(previous, run)
    refuse_wrong_stage(key, str(path), find_run(path, key)[0].read_config())  # a run that names itself would recurse forever
    return load_run(path, str(device))


def build_datamodule_of_run(model: LoadedModel, root: str | None, cache_dir: str | None) -> ImageDataModule:
    """Build and set up the data module of a run; ``root`` and ``cache_dir`` tell where its data and caches are if not None.

    Raises:
        UserError: the data is missing, or its pictures have changed, so held-out ones might be training pictures.
    """
    data = dict(model.config["data"])
    if root:
        if "root" not in data:
            raise UserError(f"data.root={root}: the run's data, {data.get('name')}, has no folder: leave data.root out")
        data["root"] = root
    if cache_dir:
        data["cache_dir"] = cache_dir
    datamodule = build_datamodule({"data": data})
    datamodule.setup()
    datamodule.load_state_dict({"pictures": model.pictures})
    return datamodule


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without executing code in it; with ``mmap``, the tensors of a ``.ckpt`` are read when they are used.

    Raises:
        UserError: the file is truncated or was not written by flowergen.
    """
    if path.suffix == ".safetensors":
        return _read_shared(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch.save does not compress: memory needed <= file size
            members = file.infolist()
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises various exceptions for invalid files
        raise UserError(f"{path} is truncated or not a flowergen checkpoint ({type(error).__name__}): use another") from error
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(k), dict) for k in CHECKPOINT_KEYS):
        raise UserError(f"{path} is not a flowergen checkpoint: use one from a run folder's checkpoints/")
    return checkpoint


def _read_shared(path: Path) -> dict[str, Any]:
    """Read the weights, whose path is given, and the state of a shared run, as ``read_checkpoint`` does."""
    run = RunFolder(path.parent)
    try:
        state = json.loads(run.shared_state.read_text(encoding="utf-8"))
        content = {key: _restored(value) for key, value in state.items()}
        return content | {"state_dict": load_file(path)}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path.parent} is damaged, or is not a shared run ({type(error).__name__}): get it again") from error


def _restored(value: Any) -> Any:
    """Return a value of state.json, in which a tensor is ``{"tensor": values, "dtype": name}``."""
    if isinstance(value, dict) and set(value) == {"tensor", "dtype"}:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    return [_restored(item) for item in value] if isinstance(value, list) else value


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of completed epochs of a checkpoint; raise ``UserError`` if it is not recorded."""
    return _count(checkpoint, "epochs", *EPOCHS_DONE_KEYS)


def steps_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of optimiser steps of a checkpoint; raise ``UserError`` if it is not recorded."""
    return _count(checkpoint, "optimiser steps", "flowergen", "optimizer_steps")


def _count(content: Any, what: str, *keys: str) -> int:
    try:
        for key in keys:
            content = content[key]
        return operator.index(content)
    except Exception as error:  # the value may be anything, even a tensor
        raise UserError(f"the checkpoint does not record its number of {what}: use another") from error


def save_weights(module: ImageModel, path: Path) -> None:
    """Save the trained network, or its moving average if there is one, as safetensors."""
    with replacing(path) as partial:  # save_file does not raise an OSError on a full disk
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in module.inference_net.state_dict().items()}))
