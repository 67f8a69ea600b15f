"""The folder of a metric card: found again by the same command, never shared by two."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowergen.config.run_folder import make_folder, write_atomically
from flowergen.data.listing import printable
from flowergen.errors import UserError

MARK = "evaluation.json"  # says whose card it is


def refuse_other_content(out: str) -> None:
    """A folder that no evaluation has made is refused before anything is loaded.

    Raises:
        UserError: it holds something else.
    """
    folder = Path(out)
    try:
        if _content(folder) and not (folder / MARK).is_file():
            raise _occupied(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"out={printable(out)} cannot be read ({error.strerror}): give another folder") from error


def card_folder(out: str | None, default: Path, mark: Mapping[str, Any]) -> Path:
    """Where a card goes, and what a stopped evaluation has left is.

    Args:
        out: as given.
        default: where none was given.
        mark: what is measured and how, plain data.

    Raises:
        UserError: it cannot be written to, or holds something else.
    """
    folder = default if out is None else Path(out)
    make_folder(folder)
    content = json.dumps(mark, indent=2, sort_keys=True)
    try:
        if (folder / MARK).is_file() and (folder / MARK).read_bytes() == content.encode():
            return folder
        if _content(folder):
            raise _occupied(folder)
        write_atomically(folder / MARK, content)
    except OSError as error:
        raise UserError(f"{printable(str(folder))} cannot be written to ({error.strerror}): give out=DIR elsewhere") from error
    return folder


def _content(folder: Path) -> list[Path]:
    """But for what a killed process may have left of the mark."""
    return [path for path in folder.iterdir() if path.name not in (f"{MARK}.partial", ".lock")]


def _occupied(folder: Path) -> UserError:
    return UserError(f"{printable(str(folder))} holds something else, and nothing is overwritten: give a new folder by out=")
