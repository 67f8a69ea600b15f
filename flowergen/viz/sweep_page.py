"""Report of a sweep: one HTML page that opens without a network, and a table for a spreadsheet."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from flowergen.viz.html import UNREADABLE, embedded, figure, linked, page, text
from flowergen.viz.html import table as html_table

BETA = "model.beta"
MAX_LABELS = 12  # in a chart
MAX_GRID_PX = 1100  # of a grid in the page
MAX_METRICS = 6  # besides the swept keys; the table of all metrics is collapsed
LABELS = {"active_units": "active latent units", "elbo": "ELBO (nats per picture)"}


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        name: name of its folder.
        status: "finished", "failed", "interrupted", "pruned" or "running, or killed".
        reason: why it failed, in one line, or another remark.
        overrides: overridden config values, by key.
        epochs: rows of metrics.csv with a validation, in order: column -> number.
        pictures: kind ("reconstruction", "generated") -> its newest PNG file.
        page: HTML page of the run; None if there is none.
    """

    name: str
    status: str
    reason: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    page: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last validated epoch."""
        return self.epochs[-1] if self.epochs else {}

    def metric(self, name: str) -> float | None:
        """Return a metric on held-out pictures, or on the training set if nothing was held out; None if not finite."""
        value = self.metrics.get(f"val/{name}", self.metrics.get(f"trainset/{name}"))
        return value if value is not None and isfinite(value) else None


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the keys in which jobs differ."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def title_of(job: Job, keys: Sequence[str]) -> str:
    """Return the overrides that distinguish a job from the others, with numbers rounded."""
    last = [key.rpartition(".")[2] for key in keys]
    names = {key: short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)}
    return " ".join(f"{name}={_short(job.overrides.get(key, 'default'))}" for key, name in names.items()) or job.name


def table(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Return column names and a row of cells per job: swept overrides, then metrics of the last validated epoch, ELBO first."""
    keys = swept_keys(jobs)
    found = dict.fromkeys(name for job in jobs for name in job.metrics)
    metrics = sorted(found, key=lambda name: not name.endswith("/elbo"))
    header = ["job", "status", *keys, *metrics]
    rows = []
    for job in jobs:
        values = [f"{job.metrics[name]:.6g}" if name in job.metrics else "" for name in metrics]
        rows.append([job.name, job.status, *(job.overrides.get(key, "") for key in keys), *values])
    return header, rows


def csv_table(jobs: Sequence[Job]) -> str:
    """Return the table as CSV, with the reasons in the last column."""
    header, rows = table(jobs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "reason"])
    writer.writerows([*row, job.reason] for row, job in zip(rows, jobs, strict=True))
    return out.getvalue()


def html_page(jobs: Sequence[Job], title: str, folder: Path) -> str:
    """Return a page in ``folder`` with a table, failed jobs, and embedded curves and grids; runs' own pages are linked."""
    keys, (header, rows) = swept_keys(jobs), table(jobs)
    best = max((elbo for job in jobs if (elbo := job.metric("elbo")) is not None), default=None)
    cells = [[text(cell) for cell in row] for row in (header, *rows)]
    styles = []
    for job, row in zip(jobs, cells[1:], strict=True):
        if job.page is not None:
            row[0] = f'<a href="{linked(job.page, folder)}">{row[0]}</a>'
        is_best = best is not None and job.metric("elbo") == best
        styles.append("failed" if job.status == "failed" else "best" if is_best else "")
    shown = 2 + len(keys) + MAX_METRICS
    parts = [html_table([row[:shown] for row in cells], styles)]
    if best is not None:
        parts.append("<p>Metrics of the last validated epoch; the highest ELBO is bold.</p>")
    if len(header) > shown:
        parts.append(
            f"<details><summary>All {len(header) - 2 - len(keys)} metrics</summary>{html_table(cells, styles)}</details>"
        )
    noted = [job for job in jobs if job.reason]
    if noted:
        parts += ["<h2>Jobs that have not finished</h2>", "<ul>"]
        parts += [f"<li>{text(job.name)} ({text(title_of(job, keys))}), {job.status}: {text(job.reason)}</li>" for job in noted]
        parts.append("</ul>")
    charts = [figure(embedded(svg, "image/svg+xml"), caption) for svg, caption in _charts(jobs, keys)]
    parts += ["<h2>Curves</h2>", *charts] if charts else []
    for kind, heading in (("reconstruction", "Reconstructions (real above reconstructed)"), ("generated", "Samples")):
        figures = [
            figure(embedded(content, "image/jpeg"), f"{title_of(job, keys)}, {job.pictures[kind].stem}")
            for job in jobs
            if kind in job.pictures and (content := _as_jpeg(job.pictures[kind]))
        ]
        parts += [f"<h2>{heading}</h2>", *figures] if figures else []
    return page(title, parts)


def _charts(jobs: Sequence[Job], keys: Sequence[str]) -> list[tuple[bytes, str]]:
    """Return (SVG, caption) of each chart for which there is data."""
    charts = []
    line = "-" if keys == [BETA] else ""
    rates = [
        (kl, -elbo - kl, title_of(job, keys))
        for job in jobs
        if (elbo := job.metric("elbo")) is not None and (kl := job.metric("loss_kl")) is not None
    ]
    if rates:
        caption = (
            "Rate-distortion: the KL against -log p(x|z) under a Gaussian with one optimal sigma, both in nats per picture. "
            "Their sum is -ELBO: down and left is better."
        )
        charts.append((_svg(partial(_rate_distortion, points=sorted(rates), line=line)), caption))
    for metric, caption in (
        ("active_units", "Active latent units, those whose posterior mean varies over the pictures, against beta."),
        ("elbo", "The common ELBO (beta 1), in nats per picture, against beta."),
    ):
        points = [
            (float(job.overrides[BETA]), value)
            for job in jobs
            if _is_number(job.overrides.get(BETA, "")) and (value := job.metric(metric)) is not None
        ]
        if points and BETA in keys:
            charts.append((_svg(partial(_against_beta, points=sorted(points), name=metric, line=line)), caption))
    if rates:
        charts.append((_svg(lambda ax: _over_epochs(ax, jobs, keys)), "The common ELBO over the epochs."))
    return charts


def _rate_distortion(ax: Axes, points: Sequence[tuple[float, float, str]], line: str) -> None:
    ax.plot([rate for rate, _, _ in points], [distortion for _, distortion, _ in points], marker="o", linestyle=line)
    for rate, distortion, label in points if len(points) <= MAX_LABELS else []:
        ax.annotate(label, (rate, distortion), textcoords="offset points", xytext=(6, 4), fontsize="small")
    ax.margins(0.25, 0.1)  # room for the labels
    ax.set(xlabel="rate: KL (nats)", ylabel="distortion (nats)")


def _against_beta(ax: Axes, points: Sequence[tuple[float, float]], name: str, line: str) -> None:
    ax.plot(*zip(*points, strict=True), marker="o", linestyle=line)
    ax.set(xlabel="beta", ylabel=LABELS[name], xscale="log" if points[0][0] else "symlog")  # beta 0 has no logarithm
    if name == "active_units":
        ax.set_ylim(bottom=0)


def _over_epochs(ax: Axes, jobs: Sequence[Job], keys: Sequence[str]) -> None:
    for job in jobs:
        course = [(row["epoch"], value) for row in job.epochs for name, value in row.items() if name.endswith("/elbo")]
        ax.plot([epoch for epoch, _ in course], [elbo for _, elbo in course], marker=".", label=title_of(job, keys))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=LABELS["elbo"])
    if len(jobs) <= MAX_LABELS:
        ax.legend(fontsize="small")


def _svg(draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(5.5, 4), layout="tight")
    ax = figure.subplots()
    draw(ax)
    ax.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _as_jpeg(png: Path) -> bytes:
    """Convert a grid to JPEG, at most ``MAX_GRID_PX`` wide and doubled if small, so that a page of fifty jobs still opens.

    Empty if the file is damaged.
    """
    out = io.BytesIO()
    try:
        with Image.open(png) as image:
            factor = 2 if 2 * image.width <= MAX_GRID_PX else min(1.0, MAX_GRID_PX / image.width)
            size = max(1, round(factor * image.width)), max(1, round(factor * image.height))
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(out, format="JPEG", quality=90)
    except UNREADABLE:
        return b""
    return out.getvalue()


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False
