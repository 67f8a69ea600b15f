"""Build objects from a command line. Only this package and train.py import Hydra.

Reading order: ``command`` (the wrapper of every command), ``overrides`` (command-line overrides), ``schema`` and ``check``
(validation), ``run_folder`` (the files of a run), ``build`` (the objects).
"""

from pathlib import Path


def conf_dir() -> str:
    """Return the absolute path of the YAML files: at the top of a checkout, inside the package of a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")
