"""Progress reporting."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
REPORT_INTERVAL_VARIABLE = "FLOWERGEN_PROGRESS_SECONDS"
REPORT_INTERVAL_SECONDS = float(os.environ.get(REPORT_INTERVAL_VARIABLE, "30"))  # between two lines if there is no terminal


def with_progress_bar(
    what: str, items: Iterable[T], total: int, done: int = 0, size: Callable[[Any], int] = lambda _: 1
) -> Generator[T, None, None]:
    """Yield the items with a progress bar on a terminal; elsewhere (a notebook, a log), print a line every 30 seconds.

    Args:
        what: name of the activity, one word.
        items: items to yield.
        total: sum of all sizes, including ``done``.
        done: progress before the first item.
        size: returns the size of an item, such as its number of pictures.
    """
    on_terminal, first = sys.stderr.isatty(), done
    started = last_report = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, disable=not on_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            done += size(item)
            progress.update(task, completed=done)
            now = time.monotonic()
            if not on_terminal and now - last_report >= REPORT_INTERVAL_SECONDS:
                last_report = now
                left = timedelta(seconds=round((now - started) * (total - done) / max(1, done - first)))
                print(f"{what}: {done:,} of {total:,}, about {left} left", file=sys.stderr, flush=True)


def num_pictures(batch: Any) -> int:
    """Return the length of a batch, or of its first array if it is a tuple."""
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)
