"""How far something has come."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
EVERY_SECONDS = 30.0  # between two lines where there is no terminal


def with_bar(what: str, items: Iterable[T], total: int, done: int = 0, size: Callable[[Any], int] = lambda _: 1) -> Iterator[T]:
    """The items, with a bar on a terminal, and elsewhere (a notebook, a log) with a line every half a minute.

    Args:
        what: is being done, a word.
        items: to pass on.
        total: of the sizes, with ``done``.
        done: before the first item.
        size: of an item, such as its number of pictures.
    """
    on_terminal, first = sys.stderr.isatty(), done
    started = said = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, disable=not on_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            done += size(item)
            progress.update(task, completed=done)
            now = time.monotonic()
            if not on_terminal and now - said >= EVERY_SECONDS:
                said = now
                left = timedelta(seconds=round((now - started) * (total - done) / max(1, done - first)))
                print(f"{what}: {done:,} of {total:,}, about {left} left", file=sys.stderr, flush=True)


def num_pictures(batch: Any) -> int:
    """The size of a batch of arrays, or of the first of several."""
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)
