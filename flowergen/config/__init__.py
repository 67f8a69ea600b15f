"""Configs: ``overrides`` composes them from a command line, ``schema`` and ``check`` validate them."""

from pathlib import Path


def conf_dir() -> str:
    """Return the absolute path of the YAML files: at the top of a checkout, inside the package of a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")
