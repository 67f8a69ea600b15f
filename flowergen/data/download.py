"""Downloads with a lock and a timeout."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

TIMEOUT_SECONDS = 30  # limit of each wait for the network; torchvision sets none


@contextmanager
def downloading(folder: Path) -> Iterator[None]:
    """Allow one process at a time to download into a folder, with a timeout for dead connections.

    Args:
        folder: target of the download; its parent is created and holds the lock file.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    finally:
        socket.setdefaulttimeout(before)
