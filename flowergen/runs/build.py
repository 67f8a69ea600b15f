"""Build the data module and the model from a checked config. Phase 2 of the checks."""

import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import Any

import hydra
import torch

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError, one_line
from flowergen.modules.image_model import ImageModel
from flowergen.modules.pretrained_weights import load_efficientnet, load_vgg16
from flowergen.randomness import initialisation

PARTS = (torch.nn.Module, torch.optim.Optimizer)  # classes that a config may instantiate within a model


def instantiate(node: dict[str, Any], where: str, kind: type, **extra: Any) -> Any:
    """Instantiate the ``_target_`` of a config node after checking the node against its signature.

    Args:
        node: config node, plain data.
        where: key of the node, for error messages.
        kind: class that the target must derive from. A config may come from an untrusted run; without this check, loading
            the run could execute arbitrary code.
        **extra: arguments that are not in the config.

    Raises:
        UserError: the target cannot be imported, does not derive from ``kind`` or takes other arguments.
    """
    if "_partial_" in node:
        raise UserError(f"{where} does not accept _partial_")
    _check_signature(node, where, (kind,), extra)
    try:
        return hydra.utils.instantiate(node, **extra, _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError | ValueError):
            frames = traceback.extract_tb(cause.__traceback__)
            place = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
            raise UserError(
                f"{where}: {node['_target_']} does not accept these values: {type(cause).__name__}: {one_line(cause)} "
                f"({Path(place.filename).name}, line {place.lineno})"
            ) from error
        raise


def _check_signature(node: dict[str, Any], where: str, kinds: tuple[type, ...], extra: dict[str, Any]) -> None:
    if not isinstance(node.get("_target_"), str):
        raise UserError(f"{where} needs a _target_, the class to instantiate")
    package = node["_target_"].partition(".")[0]
    if package.isidentifier() and package != "__main__" and importlib.util.find_spec(package) is None:
        raise UserError(
            f"{where}._target_={node['_target_']} cannot be imported: there is no module {package}: "
            "run the command in the folder that contains it, or add that folder to PYTHONPATH"
        )
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"{where}._target_={node['_target_']} cannot be imported: {one_line(error)}") from error
    if not isinstance(target, type) or not issubclass(target, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{where}._target_={node['_target_']} must be a class derived from {wanted}")
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    signature = inspect.signature(target)
    try:
        bind = signature.bind_partial if node.get("_partial_") else signature.bind
        bind(**arguments, **extra)
    except TypeError as error:
        names = ", ".join(name for name in signature.parameters if name not in ("self", "args", "kwargs"))
        raise UserError(f"{where}: {target.__name__}: {one_line(error)}; it takes {names}") from error
    for key, value in node.items():
        _check_parts(value, f"{where}.{key}")


def _check_parts(value: Any, where: str) -> None:
    """Check every nested node that Hydra would instantiate, including those in lists."""
    if isinstance(value, dict) and "_target_" in value:
        _check_signature(value, where, PARTS, {})
    elif isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            _check_parts(child, f"{where}.{key}")


def build_datamodule(config: dict[str, Any]) -> ImageDataModule:
    """Build the data module; no pictures are read yet."""
    data = config["data"]
    if data.get("batch_size") == "auto":
        data = data | {"batch_size": 1}  # placeholder until runs.batch_size has found it
    return instantiate(data, "data", ImageDataModule)


def fetch_weights(config: dict[str, Any]) -> None:
    """Load the pretrained weights that the model needs, so that a ``UserError`` for them comes before pictures are decoded."""
    model = config["model"]
    if model.get("perceptual") in ("vgg16", "lpips"):
        load_vgg16(model["weights_dir"])
    if model.get("perceptual") == "efficientnet":
        load_efficientnet("lite0", "model.perceptual=efficientnet")
    if model.get("discriminator", {}).get("kind") == "projected":
        load_efficientnet("lite0", "model.discriminator.kind=projected")
    if "num_latents" in model:
        load_efficientnet("lite0", "model=decoder")
    if model.get("alignment_weight"):
        load_efficientnet("lite0", "model.alignment_weight")


def build_module(config: dict[str, Any], num_classes: int, previous: ImageModel | None = None) -> ImageModel:
    """Build the model of a config; its initial weights depend on ``seed`` only.

    Args:
        config: the whole config.
        num_classes: number of classes of the data set, for models that take it; 0 without labels.
        previous: model of the previous stage, for models that take an autoencoder or a diffusion model.

    Raises:
        UserError: invalid arguments, including those of the optimiser, which are checked before the data is loaded.
    """
    with initialisation(config["seed"]):
        manual = manual_optimization_arguments(config)
        arguments = accepted_arguments(
            config["model"], num_classes=num_classes, autoencoder=previous, diffusion=previous, **manual
        )
        module = instantiate(config["model"], "model", ImageModel, **arguments)
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: {one_line(error)}") from error
    if config["trainer"]["channels_last"]:
        module.to(memory_format=torch.channels_last)
    return module


def accepted_arguments(node: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Return those of ``arguments`` that the node's ``_target_`` accepts."""
    try:
        names = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
    except Exception:  # instantiate reports the error
        return {}
    return {name: value for name, value in arguments.items() if name in names}


def manual_optimization_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return the Trainer settings that Lightning refuses with several optimisers; such models take them as arguments."""
    keys = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
    return {key: config["trainer"][key] for key in keys if key in config["trainer"]}
