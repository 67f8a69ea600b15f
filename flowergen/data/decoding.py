"""Pictures decoded by several threads, in order; what takes long is named."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from flowergen.data.listing import printable

log = logging.getLogger(__name__)

T = TypeVar("T")

PICTURES_AHEAD = 256  # decoded or queued before they are used: bounds memory, and the wait after Ctrl-C
SLOW_SECONDS = 30.0  # a photograph takes less than one


def in_order(decode: Callable[[int], T], names: Sequence[str], num_threads: int | None = None) -> Iterator[T]:
    """What ``decode`` makes of picture 0, 1, ...

    No thread can be stopped, so a picture that takes for ever would hold everything up without a word: the log names one that
    takes longer than 30 s, and again after twice the time.

    Args:
        decode: called from several threads at once.
        names: of the pictures, for the log.
        num_threads: None leaves it to Python, which takes a few more than there are cores.
    """
    pool = ThreadPoolExecutor(num_threads)  # threads: Pillow gives the interpreter lock back while it decodes
    try:
        for first in range(0, len(names), PICTURES_AHEAD):
            rows = range(first, min(first + PICTURES_AHEAD, len(names)))
            for row, future in zip(rows, [pool.submit(decode, row) for row in rows], strict=True):
                seconds = SLOW_SECONDS
                while not wait([future], seconds).done:
                    log.warning("still decoding %s: if that does not end, stop and remove it", printable(names[row]))
                    seconds *= 2
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, or where the pictures cannot be written
