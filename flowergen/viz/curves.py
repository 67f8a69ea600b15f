"""Plots of a training run over its epochs."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowergen.viz.grids import write_png

COLORS = {"training": "C0", "validation": "C1", "training set, evaluated": "C2"}
TITLES = {"psnr": "PSNR (dB)", "elbo": "ELBO (nats per image)", "loss_kl": "loss: KL (nats)"}


def plot_curves(metrics_csv: str | Path, png: str | Path) -> None:
    """Plot the loss, its terms, PSNR and ELBO over the epochs, one panel each, training and validation together.

    Rows of the same epoch are averaged. Nothing is written if the table is missing or has none of these quantities.

    Args:
        metrics_csv: table with a row per logging call: `epoch`, `step` and any of `train/NAME` (within an epoch),
            `train_epoch/NAME` (its average), `val/NAME`, `trainset/NAME`; cells may be blank.
        png: the file to write, atomically.
    """
    metrics_csv = Path(metrics_csv)
    if not metrics_csv.exists():
        return
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    panels = {name: curves for name in _quantities(rows) if (curves := _curves(rows, name))}
    if not panels:
        return

    figure, axes = _panels(len(panels))
    for ax, (name, curves) in zip(axes, panels.items(), strict=False):
        for label, curve in curves.items():
            ax.plot(list(curve), list(curve.values()), marker=".", markersize=4, color=COLORS[label], label=label)
        ax.set(title=TITLES.get(name, name.replace("_", ": ", 1).replace("_", " ")), xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    _write(figure, png)


def plot_evaluations(history: Sequence[Mapping[str, float | None]], memorising: int | None, png: str | Path) -> None:
    """Plot the results of evaluations during training, one panel per quantity, together with those of held-out pictures.

    Args:
        history: an entry for each evaluation: ``epoch``, values by name, ``NAME_held_out`` for the control of ``NAME``, and
            ``held_out_loss``; a value is None if it was not measured.
        memorising: the epoch at which memorising begins, marked by a line; None for no line.
        png: the file to write, atomically.
    """
    names = [name for name in history[-1] if name != "epoch" and not name.endswith("_held_out")]
    names = [name for name in names if any(entry.get(name) is not None for entry in history)]
    figure, axes = _panels(len(names))
    for ax, name in zip(axes, names, strict=False):
        for key, label, color in ((name, "samples", "C0"), (f"{name}_held_out", "held-out pictures", "C2")):
            points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
            if key == "held_out_loss":
                label, color = "validation", "C1"
            if points:
                ax.plot(*zip(*points, strict=True), marker=".", color=color, label=label)
        if memorising is not None:
            ax.axvline(memorising, color="C3", linestyle="--", label="memorising begins")
        ax.set(title=name.removeprefix("eval/").replace("_", " "), xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    _write(figure, png)


def _panels(num: int) -> tuple[Figure, list[Axes]]:
    num_columns = min(3, num)
    num_rows = -(-num // num_columns)
    figure = Figure(figsize=(4.5 * num_columns, 3.2 * num_rows), dpi=100, layout="tight")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).ravel())
    for ax in axes[num:]:
        ax.remove()
    return figure, axes[:num]


def _write(figure: Figure, png: str | Path) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    write_png(png, np.asarray(canvas.buffer_rgba())[..., :3])


def _quantities(rows: list[dict[str, str]]) -> list[str]:
    """Return the loss, its terms in the table's order, then the scores."""
    names = [column.partition("/")[2] for column in (rows[0] if rows else {})]
    terms = dict.fromkeys(name for name in names if name.startswith("loss_"))
    return ["loss", *terms, "psnr", "elbo"]


def _curves(rows: list[dict[str, str]], name: str) -> dict[str, dict[float, float]]:
    """Return label -> epoch -> average for the splits that have this quantity."""
    curves = {
        "training": _epoch_means(rows, f"train_epoch/{name}") or _epoch_means(rows, f"train/{name}"),
        "validation": _epoch_means(rows, f"val/{name}"),
        "training set, evaluated": _epoch_means(rows, f"trainset/{name}"),  # if nothing is held out
    }
    return {label: curve for label, curve in curves.items() if curve}


def _epoch_means(rows: list[dict[str, str]], column: str) -> dict[float, float]:
    values = defaultdict(list)
    for row in rows:
        if row.get("epoch") and row.get(column):
            values[float(row["epoch"])].append(float(row[column]))
    return {epoch: sum(some) / len(some) for epoch, some in sorted(values.items())}
