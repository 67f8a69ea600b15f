"""From a command line to objects: the only layer, with train.py, that imports Hydra.

Read in this order: ``command`` (the wrapper of every command), ``overrides`` (what was typed), ``schema`` and ``check`` (what
may be typed), ``run_folder`` (what a run leaves), ``build`` (the objects).
"""

from pathlib import Path


def conf_dir() -> str:
    """Absolute folder of the YAML files: at the top of a checkout, inside the package of a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")
