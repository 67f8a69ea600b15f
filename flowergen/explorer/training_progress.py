"""Contents of the tab Run, as HTML or Markdown: the files of a run folder as they are now, even while it is training."""

import csv
import re
import time
from pathlib import Path
from typing import Any

from flowergen.errors import UserError
from flowergen.evaluation.card import markdown, newest_card
from flowergen.explorer import validation
from flowergen.runs.run_folder import RunFolder
from flowergen.viz.html import embedded, text

KINDS = {
    "generated": "Samples, of the same noise in every epoch",
    "reconstruction": "Real pictures above, their reconstructions below",
}
OMITTED = ("Not measured", "Notes", "Protocol")  # sections of a card that may name paths of this machine, or compare cards


def epochs(run: RunFolder) -> list[int]:
    """Return the epochs after which pictures were written, in ascending order."""
    names = [re.fullmatch(r"([a-z]+)_epoch_(\d+)\.png", path.name) for path in run.images.glob("*.png")]
    return sorted({int(name[2]) for name in names if name and name[1] in KINDS})


def pictures_of_epoch(run: RunFolder, number: Any) -> str:
    """Return the pictures of an epoch, by its position in ``epochs`` from 1; a larger number means the last one.

    Raises:
        UserError: the number is invalid.
    """
    found = epochs(run)
    if not found:
        return '<p class="note">Training has not written any pictures yet.</p>'
    epoch = found[min(validation.whole("The number of a picture", number, 1, 10**6), len(found)) - 1]
    shown = [_image(run.images / f"{kind}_epoch_{epoch:04d}.png", f"{words}, epoch {epoch}") for kind, words in KINDS.items()]
    return "".join(shown)


def curves(run: RunFolder) -> str:
    """Return the state of the training and its curves."""
    return f'<p class="note">{text(_state(run))}</p>{_image(run.path / "loss_plot.png", "Curves, from metrics.csv")}'


def versions(run: RunFolder) -> list[tuple[str, float]]:
    """Return names and modification times of the displayed files; while they are equal, the tab need not be redrawn."""
    files = [run.metrics, run.path / "loss_plot.png", run.provenance, *run.images.glob("*.png")]
    files += run.path.glob("evaluation/*/card.json")
    return sorted((path.name, path.stat().st_mtime) for path in files if path.is_file())


def card(run: RunFolder) -> str:
    """Return the newest metric card, or the command that makes one."""
    try:
        whole = markdown(newest_card(run.path))
    except UserError:
        return "No metric card yet: `python -m flowergen.evaluate run=RUN` makes one."
    return re.split(rf"\n## (?:{'|'.join(OMITTED)})", whole)[0]


def _state(run: RunFolder) -> str:
    try:
        with run.metrics.open(newline="", errors="replace") as file:
            *_, last = csv.DictReader(file)
        done = f"{int(last['step']):,} optimiser steps, epoch {last['epoch']}"
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.metrics.stat().st_mtime))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # ValueError: there is no row yet
        return "No metrics yet."
    return f"{done}, written {written}. Training: {run.exit() or 'unknown'}."


def _image(path: Path, caption: str) -> str:
    """Return a PNG file and its caption, or nothing if there is no file."""
    try:
        address = embedded(path.read_bytes(), "image/png")
    except OSError:
        return ""
    words = text(caption)
    return f'<figure class="file"><img alt="{words}" src="{address}"><figcaption>{words}</figcaption></figure>'
