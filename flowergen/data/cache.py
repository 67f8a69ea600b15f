"""Cache of decoded pictures: one memory-mapped array shared by all processes and runs.

A cache is a folder, such as ``<name>_64px_<key>/`` or ``<name>_48x64px_grey_pad_<key>/``, with the pixels in ``images.npy``
and the rest in ``meta.json``. The key is a hash of the source files and the transform. The folder is created by one rename,
so it is either complete or absent.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout

from flowergen.data.decoding import read_all
from flowergen.data.listing import Listing
from flowergen.data.reading import Fit, fit_picture
from flowergen.errors import UserError, printable
from flowergen.picture_shape import PictureShape

log = logging.getLogger(__name__)

T = TypeVar("T")

TRANSFORM_VERSION = 1  # increment when reading.py produces different pixels for the same file


@dataclass(frozen=True)
class CachedImages:
    """The pictures of a listing that can be decoded.

    Attributes:
        images: (M, C, H, W) uint8, a read-only memory map.
        rows: (M,) int64 position of each in the listing, ascending.
        digests: (M,) str, hash of the source bytes: equal for byte-identical duplicates.
        unreadable: "name (reason)" of the other pictures.
        key: cache key, a hash of the source files and the transform.
    """

    images: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    unreadable: tuple[str, ...]
    key: str


def cached_images(
    listing: Listing,
    name: str,
    shape: PictureShape,
    cache_dir: Path,
    on_corrupt: Literal["error", "skip"] = "error",
    num_threads: int | None = None,
    instead: str = ", or set data.on_corrupt=skip",
    fit: Fit = "crop",
) -> CachedImages:
    """Open the cache of a listing; decode the pictures first if it is missing or damaged.

    If another process is decoding, wait for it. A killed process releases the lock and leaves nothing that could be
    mistaken for a cache. An existing cache is opened without writing anything.

    Args:
        listing: the pictures.
        name: name of the data set, for the folder's name.
        shape: (C, H, W) of the pictures.
        cache_dir: the folder of all caches.
        on_corrupt: ``error`` raises if pictures cannot be decoded, ``skip`` leaves them out.
        num_threads: number of decoding threads; None uses Python's default, a few more than there are cores.
        instead: alternative remedy to name in the error about pictures that cannot be decoded.
        fit: how they are fitted to the shape, see ``fit_picture``.

    Returns:
        The M pictures that can be decoded, in the order of the listing.

    Raises:
        UserError: some pictures cannot be decoded (all of them are named, and the rest is cached nevertheless), none can
            be decoded, or the cache cannot be written.
    """
    key, (size, kind), num = key_of(listing, shape, fit), _transform(shape, fit), len(listing.names)
    folder = cache_dir / f"{name}_{size}px{kind}_{key[:16]}"

    def open_() -> CachedImages | None:
        if not folder.exists():
            return None
        try:
            found_key, rows, digests, unreadable = read_meta(folder, listing)
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            found = (found_key, images.dtype, images.shape, digests.shape)
            if found != (key, np.uint8, (len(rows), *shape), rows.shape):
                raise ValueError(f"not the expected pictures: {found}")
        except Exception as error:  # json and numpy raise errors of any type on damaged bytes, even tokenize.TokenError
            log.warning("%s is damaged (%s): decoding again", folder, printable(str(error)))
            return None
        return CachedImages(images, rows, digests, unreadable, key)

    def read(row: int) -> tuple[np.ndarray, str]:
        image, digest = listing.read(row)
        return fit_picture(image, shape, fit), digest

    def build(temporary: Path) -> None:
        log.info("decoding %s pictures to %s, once", f"{num:,}", shape)
        start = time.perf_counter()
        # Written as a stream: with a memory map, a full disk would kill the process (SIGBUS) instead of raising OSError.
        with open(temporary / "images.npy", "wb") as file:
            write_header(file, "|u1", (num, *shape))
            results = read_all("decoding", listing.names, read, lambda image: file.write(image.tobytes()), num_threads)
            file.seek(0)
            # same header length: numpy pads it so that the first axis can change
            write_header(file, "|u1", (len(results[0]), *shape))
            sync(file)
        write_meta(temporary, key, *results)
        seconds = time.perf_counter() - start
        log.info("decoded them in %.1f s, %.0f pictures/s, into %s", seconds, num / seconds, folder)

    num_bytes = num * (shape.num_values + 36)  # pixels and a digest each
    return without_unreadable(open_or_build(folder, open_, build, "the decoded pictures", num_bytes), num, on_corrupt, instead)


def key_of(listing: Listing, shape: PictureShape, fit: Fit) -> str:
    """Return a hash that identifies the pixels of a listing's pictures."""
    transform = "".join(_transform(shape, fit))
    return blake2b(f"{TRANSFORM_VERSION}/{transform}/{listing.fingerprint}".encode(), digest_size=16).hexdigest()


def _transform(shape: PictureShape, fit: Fit) -> tuple[str, str]:
    """Return the size and, unless the pictures are in colour and cropped, their kind: ("64", ""), ("48x64", "_grey_pad")."""
    size = f"{shape.height}" if shape.height == shape.width else f"{shape.height}x{shape.width}"
    return size, "_grey" * (shape.channels == 1) + "_pad" * (fit == "pad")


def without_unreadable(cached: CachedImages, num: int, on_corrupt: Literal["error", "skip"], instead: str) -> CachedImages:
    """Return ``cached`` after reporting which of the ``num`` pictures cannot be decoded.

    Raises:
        UserError: some cannot be decoded and ``on_corrupt`` is ``error``.
    """
    if cached.unreadable:
        which = f"{len(cached.unreadable):,} of {num:,} pictures cannot be decoded"
        if on_corrupt == "error":
            raise UserError(f"{which}: {', '.join(cached.unreadable)}; repair or remove them{instead}")
        log.warning("%s and are skipped: %s", which, ", ".join(cached.unreadable))
    return cached


def open_or_build(
    folder: Path, open_: Callable[[], T | None], build: Callable[[Path], None], content: str, num_bytes: int
) -> T:
    """Return the content of a cache folder, building it first if it is missing; other processes wait meanwhile.

    Args:
        folder: cache folder; created by one rename, so it is either complete or absent.
        open_: returns the content, or None if it is missing or damaged; writes nothing.
        build: fills the temporary folder passed to it.
        content: description of the content, for the error.
        num_bytes: approximate size.

    Raises:
        UserError: there is not enough disk space (checked before any work is done), or the folder cannot be written.
    """
    found = open_()
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            found = open_()  # another process may have built it meanwhile
            if found is None:
                temporary = folder.with_name(folder.name + ".tmp")
                _remove(temporary)  # left by a killed process: we hold the lock
                _check_room(folder, content, num_bytes)
                temporary.mkdir()
                try:
                    build(temporary)
                    _remove(folder)  # a damaged one
                    temporary.rename(folder)
                finally:
                    _remove(temporary)
                found = open_()
    except OSError as error:
        raise UserError(
            f"{content}, {num_bytes:,} bytes, cannot be written to {printable(str(folder.parent))} "
            f"({printable(str(error))}): make room there or choose another folder with paths.cache_dir="
        ) from error
    assert found is not None, f"{folder} cannot be opened after it was built"
    return found


def write_meta(folder: Path, key: str, digests: dict[int, str], reasons: dict[int, str]) -> None:
    """Write ``meta.json``, durably; for the dictionaries, see ``read_all``."""
    meta = {"key": key, "unreadable": list(reasons.items()), "digests": list(digests.values())}
    with open(folder / "meta.json", "wb") as file:
        file.write(json.dumps(meta).encode())
        sync(file)


def read_meta(folder: Path, listing: Listing) -> tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return what ``write_meta`` has written: the key, and rows, digests and unreadable pictures as in ``CachedImages``."""
    meta = json.loads((folder / "meta.json").read_text())
    reasons = dict[int, str](meta["unreadable"])
    rows = np.setdiff1d(np.arange(len(listing.names)), list(reasons))
    unreadable = tuple(f"{printable(listing.names[row])} ({printable(reason)})" for row, reason in reasons.items())
    return meta["key"], rows, np.array(meta["digests"], dtype=str), unreadable


def _check_room(folder: Path, content: str, num_bytes: int) -> None:
    disk = shutil.disk_usage(folder.parent)
    if disk.free < num_bytes and disk.total:  # 0 on some network file systems
        raise UserError(
            f"{content} take {num_bytes:,} bytes, and {printable(str(folder.parent))} has {disk.free:,} left: "
            "make room there or choose another folder with paths.cache_dir="
        )


def _lock(folder: Path) -> AcquireReturnProxy:
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is creating %s: waiting for it", folder.name)
        return lock.acquire()


def write_header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    """Write the header of an ``.npy`` file; the values follow."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def sync(file: BinaryIO) -> None:
    """Flush a file to the disk, or raise OSError."""
    file.flush()
    os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
