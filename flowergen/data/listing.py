"""What a data set consists of, before any picture is decoded."""

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flowergen.data.reading import IMAGE_EXTENSIONS, bytes_of, read_rgb
from flowergen.errors import UserError

log = logging.getLogger(__name__)


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
        class_names: by label, fit for a line of text (``printable``).
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


def list_image_folder(root: Path, key: str = "data.root") -> Listing:
    """List a folder of pictures: flat or with class folders, at any depth, with or without train/val/test folders.

    Leading folders that all pictures share mean nothing. After them, and after the train, val and test folders if there
    are any, the first folder is the class; pictures in none are unlabelled. Hidden files are left out, and so are
    pictures beside train and test folders rather than in them.

    Args:
        root: the folder. Moving it changes nothing, not even the fingerprint.
        key: of the config that gave it, for errors.

    Returns:
        The listing; classes in natural order (``class 2`` before ``class 10``).

    Raises:
        UserError: there is no such folder, it cannot be read, or no picture is in it.
    """
    where = f"{key}={printable(str(root))}"
    found, others = find_pictures(root, key)
    if not found:
        raise UserError(
            f"{where} holds no pictures, and {len(others):,} other files: "
            f"give a folder with pictures ({' '.join(IMAGE_EXTENSIONS)})"
        )
    if others:
        log.warning("%s: %s", where, _left_out(found, others))
    names, labels, class_names, subsets = read_folders(found)
    if len(names) < len(found):
        log.warning(
            "%s: left out %d pictures beside its train, val and test folders, such as %s",
            where,
            len(found) - len(names),
            printable(min(set(found) - set(names))),
        )
    return listing_of(root, names, labels, class_names, subsets)


def _left_out(found: Sequence[str], others: Sequence[str]) -> str:
    """What files that are no pictures by their extension are, and which folders hold nothing else."""
    extensions = Counter(PurePosixPath(name).suffix.lower() or "none" for name in others)
    kinds = ", ".join(f"{printable(extension)} {num:,}" for extension, num in extensions.most_common(5))
    with_pictures = {parent for name in found for parent in PurePosixPath(name).parents}
    without = sorted({str(PurePosixPath(name).parent) for name in others if PurePosixPath(name).parent not in with_pictures})
    folders = f"; no picture is left of {printable(', '.join(without[:5]))}{', ...' if len(without) > 5 else ''}"
    heic = "; pip install pillow-heif to read .heic" if {".heic", ".heif"} & extensions.keys() else ""
    return f"left out {len(others):,} files by their extension ({kinds}){folders if without else ''}{heic}"


def find_pictures(root: Path, key: str) -> tuple[list[str], list[str]]:
    """Find the files that are pictures by their extension, hidden ones left out.

    Args:
        root: the folder.
        key: of the config that gave it, for errors.

    Returns:
        Their names, sorted: POSIX paths relative to the root; and those of the other visible files.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    where = f"{key}={printable(str(root))}"
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
    return names, [name for name in files if not name.lower().endswith(IMAGE_EXTENSIONS)]


def read_folders(names: Sequence[str]) -> tuple[list[str], list[int], list[str], np.ndarray | None]:
    """What the folders of pictures say about them, by the rules of ``list_image_folder``.

    Args:
        names: POSIX paths relative to the root.

    Returns:
        The names that are left, without those beside train and test folders; their labels; the class names; their
        subsets, None where there are no train and test folders.
    """
    names = list(names)
    folders = _without_shared([name.split("/")[:-1] for name in names])
    split = [subset_named(path[0]) if path else None for path in folders]
    subsets = None
    if "train" in split and len(set(split) - {None}) > 1:
        inside = [row for row, subset in enumerate(split) if subset]
        names = [names[row] for row in inside]
        folders = _without_shared([folders[row][1:] for row in inside])
        subsets = np.array([split[row] for row in inside])

    class_names = sorted({path[0] for path in folders if path}, key=_natural)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[path[0]] if path else -1 for path in folders]
    return names, labels, class_names, subsets


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
    versions = [_version(root / name) for name in names]
    for name, version in zip(names, versions, strict=True):
        fingerprint.update(repr([os.fsencode(name), *version]).encode())
    return Listing(
        names=tuple(names),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(map(printable, class_names)),  # they reach grids, cards, checkpoints and TensorBoard
        subsets=subsets,
        fingerprint=fingerprint.hexdigest(),
        read=partial(_read, root, tuple(names), versions),
    )


def subset_named(folder: str) -> str | None:
    """The subset that a folder's name stands for.

    >>> subset_named("Training Data"), subset_named("trains")
    ('train', None)
    """
    match = SPLIT_FOLDER.fullmatch(folder)
    return SUBSETS[match.lastindex - 1] if match and match.lastindex else None


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """Decode a file.

    Returns:
        (H, W, 3) uint8 RGB, and the hex digest of its bytes.

    Raises:
        UnreadablePicture: it cannot be read, or does not decode.
    """
    data = bytes_of(path)
    return read_rgb(data), digest_of(data)


def digest_of(data: bytes) -> str:
    """The digest by which byte-identical pictures are known."""
    return blake2b(data, digest_size=16).hexdigest()


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
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
                elif _is_file(entry):
                    yield f"{prefix}{entry.name}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself is as dead as one that leads nowhere
            return False
        raise


def _is_file(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False):  # without asking the file system
        return True
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)  # a dead link is an unreadable file, a pipe is none


def _without_shared(folders: list[list[str]]) -> list[list[str]]:
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return [path[shared:] for path in folders]


def _natural(name: str) -> tuple[list[Any], str]:
    parts = re.split("([0-9]+)", name.casefold())  # text and numbers in turn
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _version(path: Path) -> tuple[int, ...]:
    """Size and time of a file; nothing where it cannot be read: reading it says why, and mending that is another version."""
    try:
        status = os.stat(path)
        return (status.st_size, status.st_mtime_ns) if os.access(path, os.R_OK) else ()
    except OSError:
        return ()


def _read(root: Path, names: Sequence[str], versions: Sequence[tuple[int, ...]], index: int) -> tuple[np.ndarray, str]:
    path = root / names[index]
    try:
        return read_picture(path)
    finally:  # whether it was read or not: neither must be taken for what was listed
        if _version(path) != versions[index]:
            raise UserError(
                f"{printable(str(path))} has changed or vanished since the pictures were listed: "
                "start again when nothing writes to them"
            )
