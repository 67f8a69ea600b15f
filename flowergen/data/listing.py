"""What a data set consists of, before any picture is decoded."""

import difflib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from flowergen.data.reading import IMAGE_EXTENSIONS, UnreadablePicture, read_rgb
from flowergen.errors import UserError

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_SECONDS = 30

# "train", "Training Data", "val_set", "test-images"
SPLIT_FOLDER = re.compile(
    r"(?:(train|training)|(val|valid|validation)|(test|testing))(?:[ _-]?(?:data|dataset|set|split|images|pictures))?",
    re.IGNORECASE,
)
SPLIT_FOLDER_NAMES = (
    'train or training; val, valid or validation; test or testing; with or without "data", "dataset", "set", "split", '
    '"images" or "pictures" after it, such as "Training Data", in upper or lower case'
)
SUBSETS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """The pictures of a data set.

    Attributes:
        names: (N,) unique, sorted: POSIX paths relative to the root, whatever order the file system has.
        labels: (N,) int64 class, -1 where unlabelled.
        class_names: by label.
        subsets: (N,) "train", "val" or "test" where the data set has a split of its own, else None.
        fingerprint: hex hash of all that determines the decoded pixels, apart from the transform.
        read: index -> ((H, W, 3) uint8 RGB, hex digest of the source, equal where the bytes are equal); raises
            UnreadablePicture. Called from several threads at once.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    subsets: np.ndarray | None
    fingerprint: str
    read: Callable[[int], tuple[np.ndarray, str]]


def list_image_folder(root: Path) -> Listing:
    """List a folder of pictures: flat or with class folders, at any depth, with or without train/val/test folders.

    Leading folders that all pictures share mean nothing. After them, and after the train, val and test folders if there
    are any, the first folder is the class; pictures in none are unlabelled. Hidden files are left out, and so are
    pictures beside train and test folders rather than in them.

    Args:
        root: the folder. Moving it changes nothing, not even the fingerprint.

    Returns:
        The listing; classes in natural order (``class 2`` before ``class 10``).

    Raises:
        UserError: there is no such folder, it cannot be read, or no picture is in it.
    """
    where = f"data.root={printable(str(root))}"
    try:
        if not root.exists():
            raise UserError(f"{where} does not exist: give the folder that holds the pictures")
        if not root.is_dir():
            raise UserError(f"{where} is a file: give the folder that holds the pictures (unpack an archive first)")
        files = sorted(_files(root))
    except OSError as error:
        raise UserError(
            f"{where} cannot be read: {error.strerror}: {printable(str(error.filename))}; make it readable or move it elsewhere"
        ) from error
    names = [name for name in files if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not names:
        raise UserError(
            f"{where} holds no pictures, and {len(files):,} other files: "
            f"give a folder with pictures ({' '.join(IMAGE_EXTENSIONS)})"
        )

    folders = _without_shared([name.split("/")[:-1] for name in names])
    split = [_split_folder(path) for path in folders]
    subsets = None
    if "train" in split and len(set(split) - {None}) > 1:
        inside = [row for row, subset in enumerate(split) if subset]
        if None in split:
            log.warning(
                "%s: left out %d pictures beside its train, val and test folders, such as %s",
                where,
                split.count(None),
                printable(names[split.index(None)]),
            )
        names = [names[row] for row in inside]
        folders = _without_shared([folders[row][1:] for row in inside])
        subsets = np.array([split[row] for row in inside])

    class_names = sorted({path[0] for path in folders if path}, key=_natural)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[path[0]] if path else -1 for path in folders]
    return listing_of(root, names, labels, class_names, subsets)


def listing_of(
    root: Path, names: Sequence[str], labels: Sequence[int], class_names: Sequence[str], subsets: np.ndarray | None
) -> Listing:
    """A listing of picture files.

    Args:
        root: their folder.
        names: POSIX paths below it, sorted.
        labels: of each, -1 where unlabelled.
        class_names: by label.
        subsets: (N,) "train", "val" or "test", or None.
    """
    fingerprint = blake2b(digest_size=16)
    for name in names:
        version: list[bytes | int] = [os.fsencode(name)]
        if os.access(root / name, os.R_OK):  # else reading it will say why, and mending that gives a new fingerprint
            status = os.stat(root / name)
            version += status.st_size, status.st_mtime_ns
        fingerprint.update(repr(version).encode())
    return Listing(
        names=tuple(names),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(class_names),
        subsets=subsets,
        fingerprint=fingerprint.hexdigest(),
        read=partial(_read, root, tuple(names)),
    )


@contextmanager
def downloading(folder: Path, timeout_seconds: float = DOWNLOAD_TIMEOUT_SECONDS) -> Iterator[None]:
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


def class_label(name: str | int, class_names: Sequence[str]) -> int:
    """The label that a user means: by number, name or slug, in any case.

    Args:
        name: such as ``3``, ``colt's foot`` or ``colts_foot``.
        class_names: by label.

    Returns:
        The label.

    Raises:
        UserError: for an unknown one, with the nearest names.

    >>> class_label("Colt's Foot", ["daisy", "colts_foot"])
    1
    """
    if not class_names:
        raise UserError(f"class {name}: these pictures have no classes")
    slugs = {_slug(known): label for label, known in reversed(list(enumerate(class_names)))}
    label = slugs.get(_slug(str(name)), int(name) if str(name).isdecimal() else -1)
    if 0 <= label < len(class_names):
        return label
    near = difflib.get_close_matches(_slug(str(name)), slugs, n=3)
    hint = f"did you mean {' or '.join(class_names[slugs[slug]] for slug in near)}?" if near else _some(class_names)
    raise UserError(f"there is no class {printable(str(name))}: {printable(hint)}")


def _slug(name: str) -> str:
    return "_".join(re.findall(r"\w+", name.casefold().replace("'", "").replace("_", " ")))


def _some(class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[:10])
    return f"there are {len(class_names)}, 0 to {len(class_names) - 1}: {shown}{', ...' if len(class_names) > 10 else ''}"


def printable(text: str) -> str:
    r"""File names may hold any bytes; this makes one fit for a line of a message.

    >>> printable("Blüte\n")
    'Blüte\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# ---- Folders ---------------------------------------------------------------------------------------------------------
def _files(root: Path) -> Iterator[str]:
    """Visible files below the root; a folder that several ways lead to comes once, by the way without links if any."""
    seen = set[tuple[int, int]]()
    folders, links = [""], list[str]()
    while folders or links:
        prefix = (folders or links).pop()
        status = os.stat(root / prefix)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(root / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
                elif entry.is_file() or not os.path.exists(entry.path):  # a dead link is an unreadable file, not none
                    yield f"{prefix}{entry.name}"


def _without_shared(folders: list[list[str]]) -> list[list[str]]:
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return [path[shared:] for path in folders]


def _split_folder(path: Sequence[str]) -> str | None:
    match = SPLIT_FOLDER.fullmatch(path[0]) if path else None
    return SUBSETS[match.lastindex - 1] if match and match.lastindex else None


def _natural(name: str) -> tuple[list[Any], str]:
    parts = re.split("([0-9]+)", name.casefold())  # text and numbers in turn
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _read(root: Path, names: Sequence[str], index: int) -> tuple[np.ndarray, str]:
    try:
        data = (root / names[index]).read_bytes()
    except OSError as error:
        raise UnreadablePicture(error.strerror or str(error)) from error
    return read_rgb(data), blake2b(data, digest_size=16).hexdigest()
