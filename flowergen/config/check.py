"""Phase 1 of the checks: validate a composed config against the schema before heavy imports."""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from flowergen.config.schema import (
    BY_TARGET,
    EXISTING_FOLDER,
    EXISTING_PATH,
    HUB,
    VAEGAN,
    Decoder,
    Folder,
    HuggingFace,
    LatentDDPM,
    Rule,
    Train,
)
from flowergen.diffusion.combinations import latent_refusal, refusal, sampler_refusal
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def check(config: dict[str, Any], schema: type, path: str = "") -> None:
    """Check keys, types and ranges recursively.

    Args:
        config: composed and resolved config, plain data.
        schema: dataclass of the root.
        path: prefix of the keys in error messages, such as ``hydra.sweeper.``

    Raises:
        UserError: names the first invalid key, what it must be, and for an unknown key the closest valid one.
    """
    _check_node(config, schema, path, config)


def schema_of(node: Any) -> type | None:
    """Return the dataclass that describes a node, by its ``_target_``; None if there is none."""
    return BY_TARGET.get(str(node.get("_target_", ""))) if isinstance(node, Mapping) else None


def data_options(data: Mapping[str, Any]) -> str:
    """Return the options that choose a data set, as they are typed: ``data=NAME``."""
    name = data.get("name")
    named = schema_of(data) is HuggingFace and name != "huggingface"
    return f"data=huggingface data.name={name}" if named else f"data={name}"


def schema_at(path: str, config: dict[str, Any], root: type = Train) -> type | None:
    """Return the dataclass that describes the node at a dotted path of a config; None if there is none."""
    schema: type | None = root
    node: Any = config
    for part in filter(None, path.split(".")):
        hint = get_type_hints(schema).get(part) if schema else None
        node = node.get(part) if isinstance(node, dict) else None
        own = hint if isinstance(hint, type) and is_dataclass(hint) else None
        schema = (schema_of(node) if isinstance(node, dict) and "_target_" in node else own) if node is not None else None
    return schema


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, including those that its schema allows to be omitted."""
    if not isinstance(node, dict):
        return
    schema = schema_of(node)
    known = [field.name for field in fields(schema)] if schema else []
    for key in dict.fromkeys([*node, *known]):
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
            yield from all_keys(node.get(key), f"{prefix}{key}.")


def unknown_key(key: str, config: dict[str, Any]) -> UserError:
    """Return the error for a key that does not exist, naming the closest valid one."""
    keys = [known for known in all_keys(config) if known != key and not known.startswith("hydra")]
    parent, _, last = key.rpartition(".")
    by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}
    near = (
        [known for known in keys if known.rsplit(".", 1)[-1] == last]
        or difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        or [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1)]
    )
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    if near:
        hint = f"did you mean {near[0]}?"
    elif siblings and (parent or "model" not in config):
        hint = f"there are {', '.join(siblings)}"
    else:
        hint = "python -m flowergen.train --help lists the keys"
    if key == "data.root":
        hint = "for pictures of your own, use data=image_folder data.root=..."
    return UserError(f"there is no key {key}: {hint}")


def _check_node(node: dict[str, Any], schema: type, path: str, config: dict[str, Any]) -> None:
    hints = get_type_hints(schema, include_extras=True)
    for key in node:
        if key not in hints:
            raise unknown_key(f"{path}{key}", config)
    for field in fields(schema):
        where = f"{path}{field.name}"
        if field.name not in node:
            if field.default is MISSING:
                raise UserError(f"{where} is missing")
            continue
        _check_value(node[field.name], hints[field.name], where, config)


def _check_value(value: Any, hint: Any, where: str, config: dict[str, Any]) -> None:
    if value == "???":
        raise UserError(f"{where} must be given: {where}=...")
    if isinstance(hint, type) and is_dataclass(hint):
        by_target = schema_of(value)
        if not isinstance(value, dict):
            raise UserError(f"{where}={value} must be a group of keys")
        if by_target is not None or "_target_" not in value:
            _check_node(value, by_target or hint, f"{where}.", config)
        return
    problem = _problem(value, hint)
    if problem:
        raise UserError(f"{where}={as_typed(value)} {problem}")
    if isinstance(value, dict):  # any node: check the nested nodes that have a schema
        schema = schema_of(value)
        if schema:
            _check_node(value, schema, f"{where}.", config)
        else:
            for key, child in value.items():
                if isinstance(child, dict):
                    _check_value(child, Any, f"{where}.{key}", config)


def _problem(value: Any, hint: Any) -> str:
    """Describe what is wrong with a value; empty if it is valid."""
    if hint is Any:
        return ""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *rules = get_args(hint)
        return _problem(value, inner) or next(filter(None, (_broken(rule, value) for rule in rules)), "")
    if origin in (Union, UnionType):
        problems = [_problem(value, option) for option in get_args(hint)]
        return "" if "" in problems else " or ".join(problems).replace(" or must be", " or")
    if origin is Literal:
        choices = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in get_args(hint)]
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return ""
        near = difflib.get_close_matches(str(value), choices, n=1)
        return f"must be {' or '.join(choices)}" + (f": did you mean {near[0]}?" if near else "")
    if origin is list:
        if not isinstance(value, list):
            return "must be a list, such as [1,2]"
        return next(filter(None, (_problem(item, get_args(hint)[0]) for item in value)), "")
    if origin is dict or hint is dict:
        children = value.values() if isinstance(value, dict) else [value]
        return "" if all(child is None or isinstance(child, dict) for child in children) else "must be a group of keys"
    wanted = (int, float) if hint is float else hint
    right = isinstance(value, wanted) and not (isinstance(value, bool) and hint is not bool)
    finite = not isinstance(value, float) or value - value == 0
    return "" if right and finite else f"must be {KINDS[hint]}"


def _broken(rule: Rule | Folder | str, value: Any) -> str:
    if isinstance(rule, Rule):
        return "" if rule.holds(value) else rule.words
    if rule == EXISTING_PATH:
        return "" if value and os.path.exists(value) else "does not exist"
    if rule == EXISTING_FOLDER or isinstance(rule, Folder):
        if not value:
            return "must be a folder"
        how = f": {rule.where_from}" if isinstance(rule, Folder) else ""
        if os.path.isdir(value):  # unlike Path.is_dir, False for a name that the file system rejects
            return ""
        return f"is {'not a folder' if os.path.exists(value) else 'not an existing folder'}{how}"
    return ""  # PATH marks the kind of value and is no constraint


def as_typed(value: Any) -> str:
    """Write a value as on the command line.

    >>> as_typed([48, 64]), as_typed(None)
    ('[48,64]', 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(as_typed(item) for item in value)}]" if isinstance(value, list) else str(value)


def contradictions(config: dict[str, Any]) -> None:
    """Check for options that are valid individually but not together.

    Raises:
        UserError: names both options.
    """
    model, data, trainer = config["model"], config["data"], config["trainer"]
    if model.get("reconstruction") == "bce" and model.get("pixel_range") == [-1, 1]:
        raise UserError("model.reconstruction=bce needs pixels in [0, 1]: set model.pixel_range=[0,1]")
    if model.get("sigma") == "learned" and model.get("reconstruction") != "gaussian":
        raise UserError("model.sigma=learned has an effect only with model.reconstruction=gaussian: set both or neither")
    _check_shape(model, data)
    _check_start(config)
    if model.get("guard") == "rollback" and model.get("adversarial_weight") == 0:
        raise UserError("model.guard=rollback needs adversarial training, which model.adversarial_weight=0 switches off")
    if model.get("guard") == "rollback" and not trainer["limit_val_batches"]:
        raise UserError("model.guard=rollback needs validation, which trainer.limit_val_batches=0 switches off")
    if data.get("decode") == "stream" and data.get("device_resident") is True:
        raise UserError(
            "data.device_resident=true keeps the decoded collection on the device, but data.decode=stream decodes it every "
            "time: set only one of them"
        )
    if schema_of(data) is HuggingFace and not data["root"] and data["name"] == "huggingface":
        raise UserError("data=huggingface needs data.name=OWNER/NAME, a repository of the hub, or data.root=DIR")
    if not config["carry_autoencoder"] and not str(config["autoencoder"]).startswith(HUB):
        raise UserError("carry_autoencoder=false needs autoencoder=hub:OWNER/NAME, which later commands can download")
    _check_diffusion(config)
    _check_decoder(config)
    fraction = isinstance(trainer["limit_train_batches"], float) and trainer["limit_train_batches"] < 1
    if fraction and trainer["accumulate_grad_batches"] > 1:
        raise UserError(
            "trainer.limit_train_batches as a fraction may end within an optimiser step of "
            f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} parts: give a number of batches"
        )
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    parts = devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    if data.get("batch_size", parts) != "auto" and data.get("batch_size", parts) % parts:
        raise UserError(
            f"data.batch_size={data['batch_size']} counts the pictures of an optimiser step and must be a multiple of "
            f"{devices * trainer['num_nodes']} device(s) x trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}"
        )
    never = not trainer["budget"] and trainer["check_val_every_n_epoch"] > trainer["max_epochs"]
    if trainer["limit_val_batches"] and never:
        raise UserError(
            f"trainer.check_val_every_n_epoch={trainer['check_val_every_n_epoch']} is never reached within "
            f"trainer.max_epochs={trainer['max_epochs']}: lower it, or switch validation off with trainer.limit_val_batches=0"
        )


def _check_shape(model: dict[str, Any], data: dict[str, Any]) -> None:
    """Check that the model is built for the pictures."""
    for key, of_data, default in (("image_size", "image_size", None), ("image_channels", "channels", 3)):
        theirs = data.get(of_data, default)
        if model.get(key, theirs) != theirs:
            raise UserError(
                f"model.{key}={as_typed(model[key])} and data.{of_data}={as_typed(theirs)} must be equal: "
                f"set only data.{of_data}, which the model reads"
            )
    factor = (model.get("latent") or {}).get("factor")
    if not isinstance(factor, int) or model.get("pretrained"):
        return
    size = data.get("image_size", 0)
    _, *sides = PictureShape.of(size)
    if any(side % factor for side in sides):
        smaller = [side - side % factor for side in sides]
        larger = [side + -side % factor for side in sides]
        nearest = [as_typed(PictureShape.of(each).image_size) for each in (smaller, larger) if all(each)]
        raise UserError(
            f"model.latent.factor={factor} does not divide data.image_size={as_typed(size)}: "
            f"use pictures of {' or '.join(nearest)} px, or another factor"
        )


def _check_start(config: dict[str, Any]) -> None:
    """Check ``pretrained`` and ``freeze`` of a VAE-GAN."""
    model = config["model"]
    if schema_of(model) is not VAEGAN:
        return
    pretrained = model.get("pretrained")
    if pretrained and not config["init"]:
        raise UserError("model.pretrained is set by init=: give init=hub:OWNER/NAME, or the folder of such an autoencoder")
    if pretrained and model["beta"] and pretrained["kind"] != "AutoencoderKL":
        raise UserError(
            f"model.beta={model['beta']:g} weighs a KL, but the latents of {model['pretrained']['kind']} have no variance: "
            "set model.beta=0"
        )
    if model.get("freeze", "none") == "none":
        return
    if not config["init"]:
        raise UserError("model.freeze=encoder keeps the encoder's weights, which are random without init=: add init=RUN")
    for key in ("class_weight", "center_weight"):
        if model[key]:
            raise UserError(f"model.{key}={model[key]:g} trains the encoder, which model.freeze=encoder excludes: set it to 0")


def _check_decoder(config: dict[str, Any]) -> None:
    model, given = config["model"], config.get("diffusion")
    if schema_of(model) is not Decoder:
        if given and schema_of(model):
            raise UserError("diffusion= is only for model=decoder: leave it out")
        return
    if given in (None, "none"):
        raise UserError(
            "model=decoder needs a trained latent diffusion model: first run  python -m flowergen.train model=latent_ddpm "
            f"{data_options(config['data'])} autoencoder=RUN  and give its run folder, diffusion=RUN"
        )


def _check_diffusion(config: dict[str, Any]) -> None:
    model, given = config["model"], config.get("autoencoder")
    if schema_of(model) is not LatentDDPM:
        if given and schema_of(model):
            raise UserError("autoencoder= is only for model=latent_ddpm: leave it out")
        return
    if not given:
        raise UserError(
            "model=latent_ddpm needs a trained autoencoder: first run  python -m flowergen.train model=vae_gan "
            f"{data_options(config['data'])}  and give its run folder, autoencoder=RUN (or none, for diffusion on pixels)"
        )
    reason = refusal(model["objective"], model["zero_terminal_snr"], model["time_sampling"], model["weighting"])
    reason = reason or (latent_refusal(model["objective"], model["schedule"]) if given != "none" else None)
    if reason:
        raise UserError(f"model.objective={model['objective']}: {reason}")
    for key in ("random_resized_crop", "color_jitter"):
        if given != "none" and model["latent_cache"] and config["data"].get(key):
            raise UserError(
                f"data.{key} augments pictures, but model.latent_cache=true encodes each of them only once: "
                f"set model.latent_cache=false, or leave data.{key} out"
            )
    if model["alignment_weight"] and (given == "none" or not model["latent_cache"]):
        raise UserError(
            f"model.alignment_weight={model['alignment_weight']:g} needs features that are cached with the latents: "
            "set autoencoder=RUN and model.latent_cache=true"
        )
    if model["class_dropout"] == 0 and model["sampling"]["guidance_scale"] != 1:
        raise UserError(
            "model.class_dropout=0 does not train the prediction without a class, which guidance needs: "
            "set model.sampling.guidance_scale=1 as well, or class_dropout=0.1"
        )
    sampler = model["sampling"]["sampler"]
    reason = sampler_refusal(model["objective"], sampler)
    if reason:
        raise UserError(f"model.sampling.sampler={sampler}: {reason}")
    if model["objective"] != "flow" and model["sampling"]["steps"] > model["num_timesteps"]:
        raise UserError(
            f"model.sampling.steps={model['sampling']['steps']} is more than model.num_timesteps={model['num_timesteps']}"
        )
