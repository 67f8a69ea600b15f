"""Files that are whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write under another name, which becomes ``path`` at the end: a reader sees the old file or the new one.

    Args:
        path: of the file; its folder exists.

    Yields:
        Where to write; it is removed if the block fails.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
