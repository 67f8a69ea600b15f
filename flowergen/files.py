"""Atomic writing of files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary file that replaces ``path`` at the end: a reader sees either the old file or the new one.

    Args:
        path: path of the file; its folder must exist.

    Yields:
        The path of the temporary file, which is removed if the block fails.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
