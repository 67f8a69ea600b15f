"""The report on a latent space: figures as plain data, tables, and maps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowergen.data.image_datamodule import evenly_spaced
from flowergen.evaluation.collapse import SILENT_NATS, Collapse
from flowergen.evaluation.latent_classes import ClassFigures, class_figures
from flowergen.viz.kl_spectrum import draw_kl_spectrum
from flowergen.viz.latent_map import draw_classes, principal_plane, tsne_plane

MAX_TSNE_POINTS = 2000  # pictures; takes under a minute on two cores
MAX_ROWS = 32  # rows of a table


def figures_of_classes(
    mean: Tensor, labels: Tensor, train_mean: Tensor | None, train_labels: Tensor
) -> dict[str, ClassFigures]:
    """Measure class separation of the whole latent and, if it is spatial, of its mean over positions, which discards location.

    Args:
        mean: (N, C, h, w) posterior means.
        labels: (N,) int64, -1 if unlabelled.
        train_mean: (L, C, h, w) posterior means of the training pictures; None if they are the same pictures.
        train_labels: (L,) their labels, as ``labels``.

    Returns:
        The figures by view; empty if no picture has a class.
    """
    if not (labels >= 0).any():
        return {}
    views = {"whole latent": lambda z: z.flatten(1)}
    if mean[0, 0].numel() > 1:
        views["mean over positions"] = lambda z: z.mean((2, 3))
    return {
        name: class_figures(
            view(mean).numpy(), labels.numpy(), None if train_mean is None else view(train_mean).numpy(), train_labels.numpy()
        )
        for name, view in views.items()
    }


def write_maps(
    folder: Path, collapse: Collapse, mean: Tensor, labels: Tensor, names: Sequence[str], of: str, seed: int
) -> None:
    """Write ``pca.png``, ``tsne.png`` and ``kl.png``.

    Args:
        folder: output folder.
        collapse: the figures.
        mean: (N, C, h, w) posterior means.
        labels: (N,) int64, -1 if unlabelled.
        names: class names.
        of: description of the pictures, for the titles.
        seed: random seed of t-SNE.
    """
    draw_kl_spectrum(folder / "kl.png", collapse.kl, collapse.variance.sqrt(), SILENT_NATS)
    points = mean.flatten(1)
    center, directions = principal_plane(points) if len(points) > 1 else (points[0], points.new_zeros(2, points.shape[1]))
    on_plane = (points - center) @ directions.T
    total = (points - center).square().sum().clamp_min(1e-30)
    first, second = (f"{ordinal} principal direction, {share:.1%} of the variance" for ordinal, share in
                     zip(("first", "second"), (on_plane.square().sum(0) / total).tolist(), strict=True))  # fmt: skip
    draw_classes(folder / "pca.png", on_plane, labels, names, f"{len(points):,} {of}: PCA of the latents", (first, second))
    rows = torch.from_numpy(evenly_spaced(np.arange(len(points)), MAX_TSNE_POINTS))
    drawn = tsne_plane(points[rows], seed)
    title = f"{len(rows):,} {of}: t-SNE of the latents"
    axes = ("only neighbourhoods are meaningful, not distances or cluster sizes", "")
    draw_classes(folder / "tsne.png", drawn, labels[rows], names, title, axes)


def as_data(about: Mapping[str, Any], collapse: Collapse, classes: Mapping[str, ClassFigures], verdict: Sequence[str]) -> dict:
    """Return all figures as plain data, after ``about``, which describes the run and the pictures."""
    c = collapse
    return {
        **about,
        "verdict": list(verdict),
        "latent_shape": list(c.kl.shape),
        "dimensions": c.num_dims,
        "silent_dimensions": c.num_silent,
        "active_units": int(c.active.sum()),
        "kl": c.kl.sum().item(),
        "information": c.information,
        "information_most": math.log(c.num_compared),
        "information_pictures": c.num_compared,
        "information_bound": c.information_bound.sum().item(),
        "aggregate_kl": c.aggregate_kl.sum().item(),
        "largest_variance": c.largest_variance,
        "largest_variance_of_prior": c.largest_of_prior,
        "classes": {name: vars(figures) for name, figures in classes.items()},
        "channels": [
            {
                "kl": c.kl[i].sum().item(),
                "silent_dimensions": int((c.kl[i] < SILENT_NATS).sum()),
                "active_units": int(c.active[i].sum()),
                "aggregate_mean": c.mean[i].mean().item(),
                "aggregate_rms": (c.mean[i].square() + c.variance[i]).mean().sqrt().item(),
                "aggregate_kl": c.aggregate_kl[i].sum().item(),
            }
            for i in range(len(c.kl))
        ],
        "per_dimension": {
            "kl": c.kl.tolist(),
            "aggregate_mean": c.mean.tolist(),
            "aggregate_std": c.variance.sqrt().tolist(),
            "aggregate_kl": c.aggregate_kl.tolist(),
            "information_bound": c.information_bound.tolist(),
        },
    }


def main_figures(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures to print, by name."""
    figures = {
        "KL": f"{data['kl']:,.1f} nats a picture, {data['kl'] / data['dimensions']:.3f} a dimension",
        "silent dimensions": f"{data['silent_dimensions']:,} of {data['dimensions']:,}, below {SILENT_NATS} nats",
        "active units": f"{data['active_units']:,} of {data['dimensions']:,}",
        "information": f"{data['information']:.2f} nats of at most {data['information_most']:.2f}, "
        f"the logarithm of {data['information_pictures']:,} pictures",
        "aggregate posterior": f"{data['aggregate_kl']:,.1f} nats from the prior, as a Gaussian of independent dimensions",
        "along one direction": f"variance {data['largest_variance']:,.1f}; for as many draws from N(0, I) at most about "
        f"{data['largest_variance_of_prior']:,.1f}",
    }
    for name, found in data["classes"].items():
        accuracy, silhouette = found["accuracy"], found["silhouette"]
        right = "no k-NN accuracy: too few pictures with a class"
        apart = "no silhouette: it needs two classes, one of them with two pictures"
        if accuracy is not None:
            right = f"{found['neighbours']}-NN accuracy {accuracy:.1%} (most frequent class: {found['majority']:.1%})"
        if silhouette is not None:
            apart = f"silhouette {silhouette:.3f}"
        figures[f"classes, {name}"] = f"{right}; {apart}"
    if not data["classes"]:
        figures["classes"] = "the pictures have none"
    return figures


def markdown(data: Mapping[str, Any]) -> str:
    """Format the report as Markdown."""
    channels = sorted(enumerate(data["channels"]), key=lambda item: -item[1]["kl"])
    what = "channel" if data["dimensions"] > len(channels) else "dimension"
    first = f", the {MAX_ROWS} with the largest KL" if len(channels) > MAX_ROWS else ""
    lines = [
        f"# Latent space of {data['run']}",
        "",
        f"{data['num_pictures']:,} {data['pictures']} of {data['data']}, latents {' x '.join(map(str, data['latent_shape']))}.",
        "",
        *(f"- {sentence}" for sentence in data["verdict"]),
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in main_figures(data).items()),
        "",
        "![KL of each dimension](kl.png)",
        "",
        "![PCA](pca.png)",
        "",
        "![t-SNE](tsne.png)",
        "",
        f"By {what}{first}; all values are in report.json.",
        "",
        f"| {what} | KL, nats | silent | active units | mean | root mean square | nats from the prior, as a whole |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {number} | {c['kl']:.3f} | {c['silent_dimensions']} | {c['active_units']} | {c['aggregate_mean']:.3f} "
            f"| {c['aggregate_rms']:.3f} | {c['aggregate_kl']:.3f} |"
            for number, c in channels[:MAX_ROWS]
        ),
        "",
    ]
    return "\n".join(lines)
