"""Which keys of the command line hold paths, and how values are quoted for Hydra's grammar, which rejects odd characters."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

PATH_KEYS = (
    "resume",
    "init",
    "autoencoder",
    "diffusion",
    "data.root",
    "paths.data_dir",
    "paths.cache_dir",
    "paths.weights_dir",
    "paths.output_dir",
    "hydra.run.dir",
    "hydra.sweep.dir",
)  # keys of train; the other commands mark theirs in the schema

HUB = "hub:"  # a repository of the Hugging Face hub, hub:OWNER/NAME, in place of a path
NOT_PATHS = ("null", "???", "none")  # the last for autoencoder=none


def quote_paths(overrides: Sequence[str], multirun: bool = False, keys: Sequence[str] = PATH_KEYS) -> list[str]:
    """Quote the values of path keys: Hydra's grammar rejects blanks, brackets, ``~``, ``=``, quotes and umlauts.

    ``~`` and relative paths become absolute, so stored paths do not depend on the working directory. With ``-m``, a value with
    a comma is a sweep unless a file or folder of that name exists.

    >>> quote_paths(["data.root=/my pictures/IMG (1)", "model.beta=2"])
    ["data.root='/my pictures/IMG (1)'", 'model.beta=2']
    """
    return [_quote_path(override, multirun, keys) for override in overrides]


def quote_texts(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Quote the values of keys that hold plain text.

    >>> quote_texts(["plus=colt's foot", "num=3"], ["plus"])
    ["plus='colt\\\\'s foot'", 'num=3']
    """
    pairs = [override.partition("=") for override in overrides]
    return [
        f"{key}={quoted(value)}" if key in keys and value not in ("", "null", "???") else f"{key}{equals}{value}"
        for key, equals, value in pairs
    ]


def _quote_path(override: str, multirun: bool, keys: Sequence[str]) -> str:
    key, equals, value = override.partition("=")
    untouched = not value or value[0] in "'\"" or value in NOT_PATHS or "${" in value
    if not equals or key.lstrip("+") not in keys or untouched:
        return override
    swept = multirun and "," in value and not os.path.exists(os.path.expanduser(value))
    parts = [
        part if part in NOT_PATHS or part.startswith(HUB) else quoted_path(part)
        for part in (value.split(",") if swept else [value])
    ]
    return f"{key}={','.join(parts)}"


def quoted_path(path: str | Path) -> str:
    """Return an absolute path quoted for Hydra's grammar; ``~name`` is a file name if there is no such user."""
    return quoted(str(Path(os.path.expanduser(path)).absolute()))


def quoted(text: str) -> str:
    """Quote any text for Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def quoted_value(value: Any) -> str:
    """Write plain data in Hydra's grammar.

    >>> quoted_value({"kind": "A", "widths": [8, 16], "scale": None})
    "{kind:'A',widths:[8,16],scale:null}"
    """
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{quoted_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(quoted_value(item) for item in value)}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
