"""Composes a config from command-line overrides, whose keys are checked before Hydra makes a folder."""

import copy
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import compress
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowergen.config import conf_dir
from flowergen.config.check import schema_at, unknown_key
from flowergen.config.schema import Train
from flowergen.errors import UserError
from flowergen.hydra_internals import set_values
from flowergen.quoting import HUB, NOT_PATHS, PATH_KEYS

MAX_OVERRIDE_LENGTH = 20_000  # characters of an override; parsing that many takes a second


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar; raise a ``UserError`` for one that it rejects."""
    parsed = []
    for override in overrides:
        if len(override) > MAX_OVERRIDE_LENGTH:
            raise UserError(f"{override[:40]}... has {len(override):,} characters: put it into a YAML file, see --config-dir")
        try:
            parsed += OverridesParser.create().parse_overrides([override])
        except Exception as error:  # the grammar's casts may raise anything, deep nesting a RecursionError
            raise UserError(
                f"{override!r} is not of the form key=value: {_first_line(error)} (quote odd characters: \"key='value'\")"
            ) from error
    return parsed


class Composer:
    """Composes ``conf/train.yaml``: with Hydra once for each choice of groups, into a copy of which values are set.

    Serves one command, as it does not notice that a file has changed.
    """

    def __init__(self) -> None:
        self._groups = {path.name for path in Path(conf_dir()).iterdir() if path.is_dir()}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
        """Compose a config, which ``${hydra:...}`` then reads, from overrides as typed, without sweeps.

        Returns:
            The config with its ``hydra`` node, and the overrides in Hydra's form: a key of the schema that is not in the YAML
            gets the ``++`` that Hydra requires.

        Raises:
            UserError: unknown key (also after ``+`` or ``++``) or group option; names the closest valid one.
        """
        search = [override for override in overrides if override.startswith("hydra.searchpath=")]
        parsed = [(o, "/" in o.key_or_group or o.key_or_group in self._groups) for o in parse(overrides)]
        choice = (*search, *(str(o.input_line) for o, is_group in parsed if is_group))
        if choice not in self._bases:
            self._bases[choice] = _compose("train", choice)
        plain = cast(dict[str, Any], OmegaConf.to_container(self._bases[choice]))
        lines = [str(o.input_line) if is_group else _checked(o, plain, Train) for o, is_group in parsed]
        are_values = [not is_group or isinstance(o.value(), dict) for o, is_group in parsed]  # data={fit:pad} sets values
        with _one_line_errors(lines):
            config, final = copy.deepcopy(self._bases[choice]), OverridesParser.create().parse_overrides(lines)
            set_values(config, final, list(compress(final, are_values)))
        HydraConfig.instance().set_config(config)
        return config, lines


def default_choice(group: str) -> str:
    """Return the option of a config group that ``conf/train.yaml`` chooses."""
    defaults = yaml.safe_load(Path(conf_dir(), "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(entry[group] for entry in defaults if isinstance(entry, dict) and group in entry)


def compose_command(name: str, schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/NAME.yaml`` from overrides with quoted paths; plain data, of which only the keys are checked."""
    base = cast(dict[str, Any], OmegaConf.to_container(_compose(name, ())))
    return resolve(_compose(name, [_checked(override, base, schema) for override in parse(overrides)]))


def _checked(override: Override, config: dict[str, Any], root: type) -> str:
    """Return the override in Hydra's form."""
    key, line = override.key_or_group, str(override.input_line)
    if key.startswith("hydra.") or _exists(key, config):
        return line
    parent, _, name = key.rpartition(".")
    schema = schema_at(parent, config, root)
    if schema is not None and name in {field.name for field in fields(schema)}:
        return "++" + line.lstrip("+")
    if schema is None and _exists(parent, config) and line.startswith("+"):
        return line  # a node without a schema, such as a user's own callback or model
    raise unknown_key(key, config)


def _exists(key: str, config: Any) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"), _one_line_errors(overrides):
        return compose(name, list(overrides), return_hydra_config=True)


@contextmanager
def _one_line_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Raise the errors of Hydra and OmegaConf as ``UserError``."""
    try:
        yield
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options or [])
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(options))}"
        raise UserError(f"{group or 'the config'} has no option {option}: {hint}") from error
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:  # RecursionError: deep nesting
        emptied = [line for line in overrides if line.endswith("=null") and "." not in line]
        hint = f" (to switch it off, choose {emptied[0].removesuffix('null')}none)" if emptied else ""
        raise UserError(_first_line(error) + hint) from error


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain data: interpolations resolved, paths absolute, without the ``hydra`` node.

    An ``image_size`` of equal height and width becomes one number, so that [64,64] is the same as 64. ``${hydra:...}`` reads
    ``HydraConfig``, which ``Composer`` and ``hydra.main`` set.

    Raises:
        UserError: an interpolation cannot be resolved.
    """
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    try:
        for key in PATH_KEYS:
            value = OmegaConf.select(config, key)
            if isinstance(value, str) and value and value not in NOT_PATHS and not value.startswith(HUB):
                OmegaConf.update(config, key, str(Path(os.path.expanduser(value)).absolute()))
        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(_first_line(error)) from error
    for node in (plain, *plain.values()):
        if isinstance(node, dict) and "image_size" in node:
            node["image_size"] = shortest_size(node["image_size"])
    return plain


def shortest_size(size: Any) -> Any:
    """Write the size of squares as their side, and leave any other value as it is.

    >>> shortest_size([64, 64]), shortest_size([48, 64])
    (64, [48, 64])
    """
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a config to dotted keys and values.

    >>> flat({"model": {"beta": 1, "channels": [8, 16]}})
    {'model.beta': 1, 'model.channels': [8, 16]}
    """
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"\s+", " ", lines[0]) if lines else type(error).__name__
