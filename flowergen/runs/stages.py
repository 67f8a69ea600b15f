"""Settings that a run inherits from the run of the previous stage or of ``init``; imports nothing that is slow to import.

In all functions, ``key`` and ``value`` are the option that names that run and its value as typed, and ``typed`` holds the keys
given on the command line with their values.
"""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import yaml

from flowergen.config import conf_dir
from flowergen.config.check import as_typed, data_options
from flowergen.config.overrides import flat, shortest_size
from flowergen.config.schema import PretrainedKind
from flowergen.errors import UserError, one_line
from flowergen.quoting import HUB, quoted_path, quoted_value
from flowergen.runs.hub import CONFIG, downloaded
from flowergen.runs.run_folder import MAX_YAML_BYTES, RunFolder, find_run

PICTURE_KEYS = ("data.image_size", "data.channels", "data.fit")
OLDER_RUN_DEFAULTS: dict[str, Any] = {"channels": 3, "fit": "crop"}  # of ``data``, where an older config lacks these keys
SPLIT_KEYS = ("data.split", "data.split_seed")  # another split would train on pictures that the previous stage holds out
TRAINING_KEYS = (  # keys of ``model`` that are not inherited with ``init``
    "optimizer.",
    "discriminator_optimizer.",
    "lr_schedule",
    "lr_warmup_steps",
    "beta_warmup_steps",
    "adversarial_start_steps",
    "adversarial_ramp_steps",
    "freeze",
)
PRETRAINED_BETA = 1e-6  # of the autoencoder of latent diffusion, an AutoencoderKL, in its authors' code (arXiv:2112.10752)
STAGES = ("autoencoder", "diffusion")  # keys that name the run of the previous stage


def previous_stage(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the run that a run with this config builds on, as a key of ``STAGES`` and its value; None if there is none."""
    return next(((key, str(config[key])) for key in STAGES if config.get(key) not in (None, "none")), None)


def pretrained_folder(value: str, key: str) -> Path | None:
    """Return the folder of the pretrained autoencoder of diffusers that ``autoencoder`` or ``init`` names; None for others.

    A folder with config.yaml is a run; one with config.json and no config.yaml is an autoencoder of diffusers. Of a repository
    of the hub, see ``runs.hub.pinned``, these two files are downloaded first.

    Raises:
        UserError: a package is not installed, or the repository cannot be downloaded or contains neither file.
    """
    folder = downloaded(value, key, (CONFIG, "config.yaml")) if value.startswith(HUB) else Path(os.path.expanduser(value))
    if os.path.isfile(folder / "config.yaml"):
        return None
    if not os.path.isfile(folder / CONFIG):
        if value.startswith(HUB):
            raise UserError(f"{key}={value} has neither {CONFIG} nor config.yaml: it is no model that can be used here")
        return None
    if find_spec("diffusers") is None:
        raise UserError(f"{key}={value} needs diffusers: pip install 'flowergen[hub]'")
    return folder


def read_pretrained(folder: Path, value: str, key: str) -> dict[str, Any]:
    """Read config.json of a pretrained autoencoder; return the keys ``kind``, ``config`` and ``source`` of its config.

    ``config`` holds the arguments of the class, and ``source`` no path of this machine.

    Raises:
        UserError: the file is missing, damaged, or of another class.
    """
    try:
        if (folder / CONFIG).stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, arguments = stored["_class_name"], {name: item for name, item in stored.items() if not name.startswith("_")}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{key}={value}: its config.json cannot be read ({one_line(error)})") from error
    if kind not in get_args(PretrainedKind):
        raise UserError(f"{key}={value} is of class {kind}: choose one of {', '.join(get_args(PretrainedKind))}")
    for text in ("${", "_target_"):  # Hydra would insert a value, or instantiate a class
        if text in str(arguments):
            raise UserError(f"{key}={value}: its config.json contains {text}, which is no argument of {kind}")
    return {"kind": kind, "config": arguments, "source": value if value.startswith(HUB) else Path(value).name}


def path_of_previous_stage(previous: tuple[str, str], run: RunFolder) -> Path:
    """Return the path of the result of ``previous_stage``: the copy in the run, or the original if it is not copied yet."""
    key, value = previous
    return run.path / key if (run.path / key).is_dir() else Path(value)


def model_nodes(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return ``model`` of a run's config and, as ``autoencoder``, that of its autoencoder's config if it has one.

    Raises:
        UserError: a config cannot be read.
    """
    stored = run.read_config()
    source = stored.get("autoencoder")
    if source in (None, "none"):
        return {"model": stored["model"]}
    autoencoder = find_run(path_of_previous_stage(("autoencoder", source), run), "autoencoder")[0]
    return {"model": stored["model"], "autoencoder": autoencoder.read_config()["model"]}


def refuse_wrong_stage(key: str, value: str, stored: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` for a run, with the config ``stored``, that is no autoencoder, or no diffusion model."""
    if key == "autoencoder" and (stored.get("autoencoder") or stored.get("diffusion")):
        raise UserError(f"autoencoder={value} is a diffusion run itself: give the run of a VAE or a VAE-GAN")
    if key == "diffusion" and previous_stage(stored) is None:
        raise UserError(f"diffusion={value} is not a latent diffusion run: give the run of model=latent_ddpm autoencoder=RUN")
    if key == "diffusion" and stored.get("diffusion"):
        raise UserError(f"diffusion={value} is the run of a decoder: resume it with resume=, or give the diffusion run")


def inherited(key: str, value: str, run: RunFolder | None, data: dict[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """Return ``++KEY=VALUE`` for each inherited key that was not typed, to be added to the command line.

    A run folder does not store them; they are inherited again when the run is resumed.

    Args:
        run: the resumed run, if any; its own copy of the previous stage is used, as the original may be gone.
        data: the composed and resolved ``data`` node.

    Raises:
        UserError: there is no such run, it belongs to another stage, it was trained on another data set and ``data`` was not
            typed, or another value was typed.
    """
    if key == "autoencoder" and not (run and run.autoencoder.is_dir()) and pretrained_folder(value, key):
        return []
    stored = find_run(path_of_previous_stage((key, value), run) if run else value, key)[0].read_config()
    refuse_wrong_stage(key, value, stored)
    source_data = OLDER_RUN_DEFAULTS | stored["data"]
    if run is None and "data" not in typed and source_data.get("name") not in (None, data.get("name")):
        raise UserError(
            f"{key}={value} was trained on {data_options(source_data)}: add {data_options(source_data)}, or, to train on other "
            f"pictures, {data_options(data)}"
        )
    same_kind = source_data.get("_target_") == data.get("_target_")  # compares classes, as the folder may have moved
    elsewhere = origin(source_data) != origin(data)
    lines = []
    for option in PICTURE_KEYS + (SPLIT_KEYS if same_kind else ()):
        name = option.removeprefix("data.")
        if name not in source_data or name not in data:
            continue
        if option not in typed:
            lines.append(f"++{option}={as_typed(source_data[name])}")
        elif shortest_size(typed[option]) != source_data[name] and not (elsewhere and option in SPLIT_KEYS):
            what = {"autoencoder": "autoencoder", "diffusion": "diffusion model"}.get(key, "run")
            raise UserError(
                f"{option}={as_typed(typed[option])}: the {what} was trained with {option}={as_typed(source_data[name])}, "
                f"so leave {option} out"
            )
    return lines


def origin(data: Mapping[str, Any]) -> Any:
    """Return what identifies a collection among those of its class: the folder, or the name of a repository."""
    return data.get("root") or data.get("name")


def settings_of(value: str, typed: Mapping[str, Any]) -> list[str]:
    """Return the overrides that choose the model and the autoencoder of the run that ``init`` names.

    Raises:
        UserError: there is no such run, it is the run of a decoder, or another model was typed.
    """
    run = find_run(value, "init")[0]
    stored = run.read_config()
    if stored.get("diffusion"):
        raise UserError(f"init={value} is the run of a decoder: give a run of vae, vae_gan or latent_ddpm")
    lines = []
    for key, node in (("model", stored["model"]), ("model/network", stored["model"].get("network"))):
        option = _option(key, node)
        if key == "model" and option is None and key not in typed:
            raise UserError(f"init={value} is a model of your own: add model=NAME and --config-dir DIR")
        if option and typed.get(key, option) != option:
            raise UserError(f"{key}={typed[key]}: init={value} has {key}={option}, so leave {key} out")
        if option and key not in typed:
            lines.append(f"{key}={option}")
    if stored.get("autoencoder") and "autoencoder" not in typed:
        carried = stored["autoencoder"] if stored["autoencoder"] == "none" else quoted_path(run.autoencoder)
        lines.append(f"autoencoder={carried}")
    return lines


def settings_of_pretrained(value: str, folder: Path, typed: Mapping[str, Any]) -> list[str]:
    """Return the overrides that make a VAE-GAN of the pretrained autoencoder of diffusers that ``init`` names.

    ``model.beta`` is 1e-6, or 0 for latents without a variance, unless it was typed.

    Raises:
        UserError: another model or a network was typed, or config.json cannot be read.
    """
    model = typed.get("model", "vae_gan")
    if model != "vae_gan":
        instead = f"for diffusion on its latents, give autoencoder={value}" if model == "latent_ddpm" else "leave model out"
        raise UserError(f"model={model}: init={value} is an autoencoder of diffusers, for model=vae_gan: {instead}")
    pretrained = read_pretrained(folder, value, "init")
    lines = _pretrained_lines(value, pretrained, typed) + ([] if "model" in typed else ["model=vae_gan"])
    beta = PRETRAINED_BETA if pretrained["kind"] == "AutoencoderKL" else 0
    return lines if "model.beta" in typed else [*lines, f"model.beta={beta}"]


def _pretrained_lines(value: str, pretrained: dict[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """Return the override of ``model.pretrained`` unless it was typed, as it is for the processes of a distributed run."""
    for key in typed:
        if key.startswith(("model.latent", "model.blocks")):
            raise UserError(f"{key}={typed[key]}: the network is that of init={value}, so leave {key} out")
    if typed.get("model.pretrained", pretrained) != pretrained:
        raise UserError(f"model.pretrained is taken from init={value}: leave it out")
    return [] if "model.pretrained" in typed else [f"model.pretrained={quoted_value(pretrained)}"]


def completed(stored: dict[str, Any]) -> list[str]:
    """Add keys introduced since the run, whose current default differs from what the run used; return them as overrides."""
    network = stored["model"].get("network")
    if not isinstance(network, dict) or network.get("_target_") != "flowergen.nn.dit.DiT" or "block" in network:
        return []
    network["block"] = "original"
    return ["++model.network.block=original"]


def architecture_of(value: str, model: Mapping[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """Return the overrides that give ``model``, composed but not resolved, the settings of the run that ``init`` names.

    These are ``++KEY=VALUE`` for the keys that were not typed and are not in ``TRAINING_KEYS``, and ``model.pretrained`` if the
    run has it.

    Raises:
        UserError: ``model.pretrained`` was given although the run has none, or another one.
    """
    composed = flat(model)
    stored = find_run(value, "init")[0].read_config()
    completed(stored)
    pretrained = stored["model"].pop("pretrained", None)
    if not pretrained and (typed.get("model.pretrained") or model.get("pretrained")):
        raise UserError(f"model.pretrained is taken from init={value}, which has none: leave it out")
    lines = _pretrained_lines(value, pretrained, typed) if pretrained else []
    for name, setting in flat(stored["model"]).items():
        if pretrained and name.startswith(("latent.", "blocks.")):  # unused
            continue
        linked = isinstance(composed.get(name), str) and "${" in composed[name]
        own = name.startswith(TRAINING_KEYS) or name.rpartition(".")[2] in ("_target_", "_partial_")
        if name in composed and not linked and not own and f"model.{name}" not in typed and composed[name] != setting:
            lines.append(f"++model.{name}={json.dumps(setting)}")
    return lines


def _option(group: str, node: Any) -> str | None:
    """Return the option of a config group whose ``_target_`` is that of a node."""
    for path in sorted((Path(conf_dir()) / group).glob("*.yaml")):
        if isinstance(node, dict) and yaml.safe_load(path.read_text(encoding="utf-8")).get("_target_") == node.get("_target_"):
            return path.stem
    return None


def is_inherited(line: str) -> bool:
    """Return True if an override comes from ``inherited``."""
    return line.startswith(tuple(f"++{key}=" for key in PICTURE_KEYS + SPLIT_KEYS))
