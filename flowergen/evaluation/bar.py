"""A bar on a terminal."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress


def with_bar(what: str, batches: Iterator[Any], done: int, total: int) -> Iterator[Any]:
    """Batches, or pairs of them, with a bar on a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch[0]) if isinstance(batch, tuple) else len(batch))
