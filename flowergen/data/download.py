"""Downloads with a lock and a timeout."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

TIMEOUT_SECONDS = 30


@contextmanager
def downloading(folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Allow one process at a time to download into a folder, with a timeout for dead connections.

    Args:
        folder: target of the download; its parent is created and holds the lock file.
        timeout_seconds: limit of each wait for the network; torchvision sets none.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_seconds)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    finally:
        socket.setdefaulttimeout(before)
