"""Listing of a data set's pictures, before any is decoded."""

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flowergen.data.reading import IMAGE_EXTENSIONS, bytes_of, read_rgb
from flowergen.errors import UserError, printable

log = logging.getLogger(__name__)


# matches "train", "Training Data", "val_set", "test-images"
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
        names: (N,) unique POSIX paths relative to the root, sorted independently of the file system.
        labels: (N,) int64 class, -1 if unlabelled.
        class_names: names by label, escaped for one line of text (``printable``).
        subsets: (N,) "train", "val" or "test" if the data set has its own split, else None.
        fingerprint: hex hash of everything that determines the decoded pixels, except the transform.
        read: index -> ((H, W, 3) uint8 RGB, hex digest of the source, equal if the bytes are equal); raises
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

    Leading folders shared by all pictures are ignored. After them, and after the train, val and test folders if there
    are any, the first folder is the class; pictures without one are unlabelled. Hidden files are left out, and so are
    pictures outside of the train and test folders.

    Args:
        root: the folder. Moving it does not change the listing, including the fingerprint.
        key: config key of the folder, for errors.

    Returns:
        The listing; classes in natural order (``class 2`` before ``class 10``).

    Raises:
        UserError: the folder does not exist, cannot be read or contains no picture.
    """
    where = f"{key}={printable(str(root))}"
    found, others = find_pictures(root, key)
    if not found:
        raise no_pictures(where, len(others))
    if others:
        log.warning("%s: %s", where, _left_out(found, others))
    names, labels, class_names, subsets = read_folders(found)
    if len(names) < len(found):
        log.warning(
            "%s: left out %d pictures outside of its train, val and test folders, such as %s",
            where,
            len(found) - len(names),
            printable(min(set(found) - set(names))),
        )
    return listing_of(root, names, labels, class_names, subsets)


def no_pictures(where: str, num_others: int) -> UserError:
    """Return the error about a folder without pictures, given as "option=folder", that has other files."""
    return UserError(
        f"{where} contains no pictures, and {num_others:,} other files: "
        f"give a folder with pictures ({' '.join(IMAGE_EXTENSIONS)})"
    )


def _left_out(found: Sequence[str], others: Sequence[str]) -> str:
    """Describe the files without a picture extension and the folders that contain nothing else."""
    extensions = Counter(PurePosixPath(name).suffix.lower() or "none" for name in others)
    kinds = ", ".join(f"{printable(extension)} {num:,}" for extension, num in extensions.most_common(5))
    with_pictures = {parent for name in found for parent in PurePosixPath(name).parents}
    without = sorted({str(PurePosixPath(name).parent) for name in others if PurePosixPath(name).parent not in with_pictures})
    folders = f"; no pictures remain in {printable(', '.join(without[:5]))}{', ...' if len(without) > 5 else ''}"
    heic = "; pip install pillow-heif to read .heic" if {".heic", ".heif"} & extensions.keys() else ""
    return f"left out {len(others):,} files by their extension ({kinds}){folders if without else ''}{heic}"


def find_pictures(root: Path, key: str) -> tuple[list[str], list[str]]:
    """Find the visible files with a picture extension.

    Args:
        root: the folder.
        key: config key of the folder, for errors.

    Returns:
        Their names, sorted POSIX paths relative to the root, and the names of the other visible files.

    Raises:
        UserError: the folder does not exist or cannot be read.
    """
    where = f"{key}={printable(str(root))}"
    try:
        if not root.exists():
            raise UserError(f"{where} does not exist: give the folder that contains the pictures")
        if not root.is_dir():
            raise UserError(f"{where} is a file: give the folder that contains the pictures (unpack an archive first)")
        files = sorted(_files(root))
    except OSError as error:
        raise UserError(
            f"{where} cannot be read: {error.strerror}: {printable(str(error.filename))}; make it readable or move it elsewhere"
        ) from error
    names = [name for name in files if name.lower().endswith(IMAGE_EXTENSIONS)]
    return names, [name for name in files if not name.lower().endswith(IMAGE_EXTENSIONS)]


def read_folders(names: Sequence[str]) -> tuple[list[str], list[int], list[str], np.ndarray | None]:
    """Derive labels and subsets from the folders of pictures, by the rules of ``list_image_folder``.

    Args:
        names: POSIX paths relative to the root.

    Returns:
        The names except those outside of train and test folders; their labels; the class names; their subsets, None if there
        are no train and test folders.
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
    """Build a listing of picture files.

    Args:
        root: folder of the pictures.
        names: sorted POSIX paths relative to the root.
        labels: class of each picture, -1 if unlabelled.
        class_names: class names by label.
        subsets: (N,) "train", "val" or "test", or None.
    """
    fingerprint = blake2b(digest_size=16)
    versions = [_version(root / name) for name in names]
    for name, version in zip(names, versions, strict=True):
        fingerprint.update(repr([os.fsencode(name), *version]).encode())

    def read(index: int) -> tuple[np.ndarray, str]:
        path = root / names[index]
        try:
            return read_picture(path)
        finally:  # also on errors: the result for a changed file must not be attributed to the listed one
            if _version(path) != versions[index]:
                raise UserError(
                    f"{printable(str(path))} has changed or vanished since the pictures were listed: "
                    "run again when nothing is writing to them"
                )

    return Listing(
        names=tuple(names),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(map(printable, class_names)),  # shown in grids, cards, checkpoints and TensorBoard
        subsets=subsets,
        fingerprint=fingerprint.hexdigest(),
        read=read,
    )


def subset_named(folder: str) -> str | None:
    """Return the subset that a folder's name denotes, or None.

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
        UnreadablePicture: the file cannot be read or decoded.
    """
    data = bytes_of(path)
    return read_rgb(data), digest_of(data)


def digest_of(data: bytes) -> str:
    """Return the digest that identifies byte-identical pictures."""
    return blake2b(data, digest_size=16).hexdigest()


# ---- Folders ---------------------------------------------------------------------------------------------------------
def _files(root: Path) -> Iterator[str]:
    """Yield visible files below the root; a folder with several paths is listed once, by one without links if possible."""
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
        if error.errno == errno.ELOOP:  # a link to itself counts as a dead link
            return False
        raise


def _is_file(entry: os.DirEntry[str]) -> bool:
    # The first test needs no file system access. Dead links count as unreadable files, pipes do not.
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or not os.path.exists(entry.path)


def _without_shared(folders: list[list[str]]) -> list[list[str]]:
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return [path[shared:] for path in folders]


def _natural(name: str) -> tuple[list[Any], str]:
    parts = re.split("([0-9]+)", name.casefold())  # text and numbers alternate
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _version(path: Path) -> tuple[int, ...]:
    """Return size and mtime of a file, () if unreadable: reading it reports why, and a repaired file is a new version."""
    try:
        status = os.stat(path)
        return (status.st_size, status.st_mtime_ns) if os.access(path, os.R_OK) else ()
    except OSError:
        return ()
