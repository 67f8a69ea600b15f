"""Multithreaded decoding in order, with a progress bar and warnings about slow pictures."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from flowergen.data.progress_bar import with_progress_bar
from flowergen.data.reading import UnreadablePicture
from flowergen.errors import UserError, printable

log = logging.getLogger(__name__)

T = TypeVar("T")

PICTURES_AHEAD = 256  # decoded or queued in advance; limits memory and the wait after Ctrl-C
SLOW_SECONDS = 30.0  # a photograph takes less than 1 s


def in_order(decode: Callable[[int], T], names: Sequence[str], num_threads: int | None = None) -> Iterator[T]:
    """Yield ``decode(0)``, ``decode(1)``, ..., computed by several threads.

    Threads cannot be stopped, so a picture that never finishes would block silently. The log therefore names a picture that
    takes longer than 30 s, and repeats the warning at doubling intervals.

    Args:
        decode: called from several threads at once.
        names: names of the pictures, for the log.
        num_threads: number of threads; None uses Python's default, a few more than there are cores.
    """
    pool = ThreadPoolExecutor(num_threads)  # threads suffice: Pillow releases the GIL while decoding
    try:
        for first in range(0, len(names), PICTURES_AHEAD):
            rows = range(first, min(first + PICTURES_AHEAD, len(names)))
            for row, future in zip(rows, [pool.submit(decode, row) for row in rows], strict=True):
                seconds = SLOW_SECONDS
                while not wait([future], seconds).done:
                    log.warning(
                        "still decoding %s: if it does not finish, stop the command and remove the file", printable(names[row])
                    )
                    seconds *= 2
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, or if the pictures cannot be written


def read_all(
    what: str,
    names: Sequence[str],
    read: Callable[[int], tuple[T, str]],
    use: Callable[[T], object] = lambda _: None,
    num_threads: int | None = None,
) -> tuple[dict[int, str], dict[int, str]]:
    """Read all pictures with a progress bar, and leave out those that cannot be decoded.

    Args:
        what: name of the activity, one word.
        names, num_threads: see ``in_order``.
        read: index -> (content, digest); raises UnreadablePicture. Called from several threads at once.
        use: called with each content, in order.

    Returns:
        The digests, and the reasons why the others cannot be decoded, each by index.

    Raises:
        UserError: none can be decoded.
    """

    def attempt(row: int) -> tuple[T, str] | str:
        try:
            return read(row)
        except UnreadablePicture as error:
            return str(error)

    digests, reasons = dict[int, str](), dict[int, str]()
    for row, result in enumerate(with_progress_bar(what, in_order(attempt, names, num_threads), len(names))):
        if isinstance(result, str):
            reasons[row] = result
        else:
            use(result[0])
            digests[row] = result[1]
    if not digests:
        row, reason = next(iter(reasons.items()))
        raise UserError(
            f"none of {len(names):,} pictures can be decoded, for example {printable(names[row])} ({printable(reason)})"
        )
    return digests, reasons
