"""Plots of a training run over its epochs."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowergen.viz.figures import write_figure

COLORS = {"training": "C0", "validation": "C1", "training set, evaluated": "C2", "samples": "C0", "held-out pictures": "C2"}
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
    names = [column.partition("/")[2] for column in (rows[0] if rows else {})]
    terms = dict.fromkeys(name for name in names if name.startswith("loss_"))
    panels = [
        (TITLES.get(name, name.replace("_", ": ", 1).replace("_", " ")), curves)
        for name in ("loss", *terms, "psnr", "elbo")
        if (curves := _curves(rows, name))
    ]
    if panels:
        _plot(panels, None, 4, png)


def plot_evaluations(history: Sequence[Mapping[str, float | None]], memorising: int | None, png: str | Path) -> None:
    """Plot the results of evaluations during training, one panel per quantity, together with those of held-out pictures.

    Args:
        history: an entry for each evaluation: ``epoch``, values by name, ``NAME_held_out`` for the control of ``NAME``, and
            ``held_out_loss``; a value is None if it was not measured.
        memorising: the epoch at which memorising begins, marked by a line; None for no line.
        png: the file to write, atomically.
    """
    panels = []
    for name in history[-1]:
        if name == "epoch" or name.endswith("_held_out") or all(entry.get(name) is None for entry in history):
            continue
        labels = {name: "validation" if name == "held_out_loss" else "samples", f"{name}_held_out": "held-out pictures"}
        curves = {}
        for key, label in labels.items():
            points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
            if points:
                curves[label] = tuple(zip(*points, strict=True))
        panels.append((name.removeprefix("eval/").replace("_", " "), curves))
    _plot(panels, memorising, 6, png)


def _plot(
    panels: Sequence[tuple[str, Mapping[str, Sequence[Any]]]], memorising: int | None, markersize: int, png: str | Path
) -> None:
    """Plot a panel for each title with its curves by label, each a pair of epochs and values."""
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(4.5 * num_columns, 3.2 * num_rows), dpi=100, layout="tight")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).ravel())
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (title, curves) in zip(axes, panels, strict=False):
        for label, (epochs, values) in curves.items():
            ax.plot(epochs, values, marker=".", markersize=markersize, color=COLORS[label], label=label)
        if memorising is not None:
            ax.axvline(memorising, color="C3", linestyle="--", label="memorising begins")
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    write_figure(png, figure)


def _curves(rows: list[dict[str, str]], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return the epochs and their averages by label, for the splits that have this quantity."""
    curves = {
        "training": _epoch_means(rows, f"train_epoch/{name}") or _epoch_means(rows, f"train/{name}"),
        "validation": _epoch_means(rows, f"val/{name}"),
        "training set, evaluated": _epoch_means(rows, f"trainset/{name}"),  # if nothing is held out
    }
    return {label: (list(curve), list(curve.values())) for label, curve in curves.items() if curve}


def _epoch_means(rows: list[dict[str, str]], column: str) -> dict[float, float]:
    values = defaultdict(list)
    for row in rows:
        if row.get("epoch") and row.get(column):
            values[float(row["epoch"])].append(float(row[column]))
    return {epoch: sum(some) / len(some) for epoch, some in sorted(values.items())}
