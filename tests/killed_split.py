"""``python -m flowergen.split`` that SIGKILLs itself: python -m tests.killed_split MOMENT COUNT ARGUMENTS..."""

import os
import shutil
import signal
import sys
from pathlib import Path

from flowergen import split
from tests.killed_train import kill_at


def half_a_copy(source: Path, target: Path) -> None:
    """What a kill in the middle of ``shutil.copy2`` leaves."""
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Set the trap, then split."""
    moment, count, *sys.argv[1:] = sys.argv[1:]
    if moment == "other file system":  # no hard links: the file is copied, and killed before the source is removed
        os.link = lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link"))  # type: ignore[assignment]
        kill_at(Path, "rename", int(count))
    elif moment == "half a copy":
        whole, calls = shutil.copy2, iter(range(1, int(count)))
        shutil.copy2 = lambda *paths: whole(*paths) if next(calls, None) else half_a_copy(*paths)  # type: ignore[assignment]
    else:
        kill_at(*{"publish": (os, "link"), "link": (Path, "symlink_to"), "remove": (Path, "unlink")}[moment], int(count))
    split.main()


if __name__ == "__main__":
    main()
