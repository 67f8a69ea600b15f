"""Files beside a card: the worst pairs as pictures, and scalars for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from flowergen.evaluation.card import key_in_logs
from flowergen.evaluation.measured import Pairs
from flowergen.viz.grids import comparison_grid, write_png


def write_pairs(folder: Path, pairs: Sequence[Pairs]) -> None:
    """Write ``copies_pixels.png`` and ``copies_features.png``: suspected copies above their nearest training pictures."""
    for found in pairs:
        samples, nearest = (torch.from_numpy(images).float() / 255 for images in (found.samples, found.nearest))
        write_png(folder / f"copies_{found.space}.png", comparison_grid(samples, nearest, columns=8, gap_px=4))


def write_scalars(folder: Path, card: Mapping[str, Any], step: int) -> None:
    """Write the card's means for TensorBoard at a training step into a folder of their own, which it treats as a run."""
    with SummaryWriter(str(folder)) as writer:
        for metric, columns in card["results"].items():
            for of, entry in columns.items():
                key = key_in_logs(metric, card["protocol"]["extractor"])
                writer.add_scalar(f"evaluation/{key}_{of}", entry["mean"], step)
