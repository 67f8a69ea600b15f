"""Our uses of undocumented internals of Hydra 1.3. tests/test_hydra_internals.py detects changes."""

from argparse import ArgumentParser

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins


def argument_parser() -> ArgumentParser:
    """Return the parser of ``hydra.main``."""
    return get_args_parser()


def config_groups() -> list[str]:
    """Return the names of the config groups on the top level; Hydra must be initialised."""
    return GlobalHydra.instance().config_loader().list_groups("")


def register_plugin(plugin: type) -> None:
    """Register a launcher or sweeper as ``hydra_plugins.flowergen.NAME``: Hydra accepts only names in that package."""
    plugins = Plugins.instance()
    plugins.register(plugin)
    plugins.class_name_to_class[f"hydra_plugins.flowergen.{plugin.__name__}"] = plugin
