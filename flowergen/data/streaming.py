"""Pictures decoded on every access, for collections that would not fit on the disk when decoded.

Only an index is stored, ``<name>_index_<key>/``: which files can be decoded, and the digest of each.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch.utils.data import DataLoader

from flowergen.data.batch import Batch
from flowergen.data.cache import (
    TRANSFORM_VERSION,
    CachedImages,
    key_of,
    open_or_build,
    read_meta,
    without_unreadable,
    write_meta,
)
from flowergen.data.decoding import read_all
from flowergen.data.listing import Listing
from flowergen.data.reading import Fit, UnreadablePicture, fit_picture
from flowergen.errors import UserError, printable
from flowergen.picture_shape import PictureShape

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # decoded while the model processes an earlier one


class StreamedImages:
    """The pictures of a collection as an (M, C, H, W) uint8 array that is decoded from their files on access.

    As with a memory map, a slice is a view that reads nothing, and a list of rows reads them.

    Args:
        listing: listing of the files.
        rows: (M,) int64 rows of the listing.
        digests: (M,) str, digests when the index was built.
        picture_shape: (C, H, W) of the pictures.
        fit: how they are fitted to it, see ``fit_picture``.
        pool: thread pool for decoding.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        listing: Listing,
        rows: np.ndarray,
        digests: np.ndarray,
        picture_shape: PictureShape,
        fit: Fit,
        pool: ThreadPoolExecutor,
    ):
        self.listing, self.rows, self.digests, self.pool = listing, rows, digests, pool
        self.picture_shape, self.fit, self.shape = picture_shape, fit, (len(rows), *picture_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        rows, digests = self.rows[index], self.digests[index]
        if isinstance(index, slice):
            return StreamedImages(self.listing, rows, digests, self.picture_shape, self.fit, self.pool)
        if rows.ndim == 0:
            return self._decode(rows, digests)
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, image in enumerate(self.pool.map(self._decode, rows, digests)):
            images[place] = image
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(len(self))], dtype)

    def _decode(self, row: np.integer, digest: str) -> np.ndarray:
        name = printable(self.listing.names[row])
        try:
            image, now = self.listing.read(int(row))
        except UnreadablePicture as error:
            raise UserError(f"{name} can no longer be read ({printable(str(error))}): restore it, then resume") from error
        if now != digest:
            raise UserError(f"{name} has changed since the run started: restore the old picture, or start a new run")
        return fit_picture(image, self.picture_shape, self.fit)


class PrefetchingLoader(DataLoader):
    """DataLoader that prefetches batches in a thread: pictures are decoded while the model computes.

    It uses a thread because decoding is multithreaded already, and an error in a worker process would surface as a
    traceback. The sampler is read ahead, but only consumed batches are counted, so a resumed run misses none.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        ahead = ThreadPoolExecutor(1)
        waiting = deque[Future[Batch]]()
        try:
            for rows in self.sampler:
                waiting.append(ahead.submit(self._load, rows))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            ahead.shutdown(cancel_futures=True)

    def _load(self, rows: list[int]) -> Batch:
        batch = self.dataset[rows]
        return Batch(*(part.pin_memory() for part in batch)) if self.pin_memory else batch


def streamed_images(
    listing: Listing,
    name: str,
    shape: PictureShape,
    cache_dir: Path,
    on_corrupt: Literal["error", "skip"] = "error",
    fit: Fit = "crop",
) -> CachedImages:
    """Return the same pixels as ``cached_images``, with the same arguments and errors, but decoded on access.

    Every file is read once to find those that can be decoded; the result is stored.
    """
    num = len(listing.names)
    key = blake2b(f"index/{TRANSFORM_VERSION}/{listing.fingerprint}".encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{name}_index_{key[:16]}"

    def open_() -> CachedImages | None:
        if not folder.exists():
            return None
        try:
            found_key, rows, digests, unreadable = read_meta(folder, listing)
            if (found_key, digests.shape) != (key, rows.shape):
                raise ValueError("not the expected pictures")
        except Exception as error:  # json raises errors of any type on damaged bytes
            log.warning("%s is damaged (%s): reading the pictures again", folder, printable(str(error)))
            return None
        images = StreamedImages(listing, rows, digests, shape, fit, ThreadPoolExecutor())
        # the cast: it supports every operation in use, which are len, shape, slices and rows
        return CachedImages(cast(np.ndarray, images), rows, digests, unreadable, key_of(listing, shape, fit))

    def build(temporary: Path) -> None:
        log.info("reading %s pictures, once, to find those that can be decoded", f"{num:,}")
        write_meta(temporary, key, *read_all("decoding", listing.names, lambda row: (None, listing.read(row)[1])))

    found = open_or_build(folder, open_, build, f"the index of {num:,} pictures", num * 36)
    return without_unreadable(found, num, on_corrupt, ", or set data.on_corrupt=skip")
