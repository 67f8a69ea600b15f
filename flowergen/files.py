"""Atomic writing of files.

Files written without ``replacing`` follow rules of their own, for example: ``callbacks.checkpoints`` publishes several
copies once all of them are written, and only in the first process; ``data.split_folders`` never overwrites a picture; and
``data.cache``, ``runs.latents``, ``runs.hub`` and ``export`` fill a folder first, each with its own rule for a leftover or for
another process that was faster.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, partial: Path | None = None, durably: bool = False) -> Iterator[Path]:
    """Write to a temporary file that replaces ``path`` at the end: a reader sees either the old file or the new one.

    Args:
        path: path of the file; its folder must exist.
        partial: the temporary file, in the same folder, which must be unique if several processes may write at the same time;
            None for ``path`` with ``.partial`` appended.
        durably: flush the content to the disk before ``path`` is replaced, so that it is whole after a power failure as well.

    Yields:
        The path of the temporary file, which is removed if the block fails.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        yield partial
        if durably:
            flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush the content of a file to the disk, or raise an OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
