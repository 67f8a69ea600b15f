"""Our uses of undocumented internals of Hydra 1.3. tests/test_hydra_internals.py detects changes."""

from argparse import ArgumentParser
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # ``_target_`` of the default sweeper


def argument_parser() -> ArgumentParser:
    """Return the parser of ``hydra.main``."""
    return get_args_parser()


def set_values(config: DictConfig, overrides: Sequence[Override], values: Sequence[Override]) -> None:
    """Complete a config as if it had been composed with all overrides, but for ``hydra.job.env_set``.

    Args:
        config: composed with ``return_hydra_config`` and the overrides that choose an option of a group; it is changed.
        overrides: all of them, in the order of the command line.
        values: the others.
    """
    ConfigLoaderImpl.validate_sweep_overrides_legal(list(overrides), RunMode.RUN, from_shell=False)
    ConfigLoaderImpl._apply_overrides_to_config(list(values), config)
    hydra, dirname = config.hydra, config.hydra.job.config.override_dirname
    task = [override for override in overrides if not override.is_hydra_override()]
    hydra.overrides.task = [override.input_line for override in task]
    hydra.overrides.hydra = [override.input_line for override in overrides if override.is_hydra_override()]
    hydra.job.override_dirname = get_overrides_dirname(task, dirname.exclude_keys, dirname.item_sep, dirname.kv_sep)


def register_plugin(plugin: type) -> None:
    """Register a launcher or sweeper as ``hydra_plugins.flowergen.NAME``: Hydra accepts only names in that package."""
    plugins = Plugins.instance()
    plugins.register(plugin)
    plugins.class_name_to_class[f"hydra_plugins.flowergen.{plugin.__name__}"] = plugin
