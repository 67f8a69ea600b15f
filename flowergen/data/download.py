"""Downloading with manners."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

TIMEOUT_SECONDS = 30


@contextmanager
def downloading(folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """One process at a time downloads into a folder, which is made, and none waits for ever for a dead connection.

    Args:
        folder: the lock lies beside it.
        timeout_seconds: of each wait for the network; torchvision sets none.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_seconds)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    finally:
        socket.setdefaulttimeout(before)
