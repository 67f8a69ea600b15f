"""The folder of a metric card: repeating a command reuses its folder, and different commands never share one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowergen.errors import UserError, printable
from flowergen.runs.run_folder import make_folder, write_atomically

IDENTITY_FILE = "evaluation.json"  # identifies the evaluation


def refuse_other_content(out: str) -> None:
    """Raise a ``UserError`` for a folder that was not made by an evaluation, before anything is loaded."""
    folder = Path(out)
    try:
        if _content(folder) and not (folder / IDENTITY_FILE).is_file():
            raise _occupied(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"out={printable(out)} cannot be read ({error.strerror}): give another folder") from error


def card_folder(out: str | None, default: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of a card, ``out`` or else the default, which may hold results of an evaluation of equal ``identity``.

    Raises:
        UserError: the folder cannot be written to, or contains other files.
    """
    folder = default if out is None else Path(out)
    make_folder(folder)
    content = json.dumps(identity, indent=2, sort_keys=True)
    try:
        if (folder / IDENTITY_FILE).is_file() and (folder / IDENTITY_FILE).read_bytes() == content.encode():
            return folder
        if _content(folder):
            raise _occupied(folder)
        write_atomically(folder / IDENTITY_FILE, content)
    except OSError as error:
        raise UserError(f"{printable(str(folder))} cannot be written to ({error.strerror}): give out=DIR elsewhere") from error
    return folder


def _content(folder: Path) -> list[Path]:
    """List the content, except the lock file and a partial identity left by a killed process."""
    return [path for path in folder.iterdir() if path.name not in (f"{IDENTITY_FILE}.partial", ".lock")]


def _occupied(folder: Path) -> UserError:
    return UserError(f"{printable(str(folder))} contains other files, and nothing is overwritten: give a new folder with out=")
