"""``index.html`` of a run folder, viewable offline: its pictures, curves, metric card and the next commands."""

import csv
import os
import re
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from flowergen.config.check import data_options
from flowergen.evaluation.card import COLUMNS, DENOISING_COLUMNS, METRICS, label_of, read_card, shown
from flowergen.files import replacing
from flowergen.picture_shape import PictureShape
from flowergen.viz.html import enlarged, figure, linked, page, pictures, table, text

MAX_CLASSES, MAX_PER_CLASS = 16, 8
MAX_DENOISED = 8
MAX_EARLIER_PICTURES = 40
MODEL_COLUMNS = {  # columns with the model's own values, by part of the card
    "samples": ("samples",),
    "copies": ("samples",),
    "reconstructions": ("reference",),
    "denoising": ("held_out",),
}
MEANINGS = {
    "fid": "How far the statistics of generated pictures are from those of real ones; the floor is what as many training "
    "pictures score. Lower is better.",
    "class_accuracy": "How often a classifier of real pictures recognises the requested class.",
    "precision": "The share of generated pictures that lie among the real ones.",
    "recall": "The share of real pictures that lie among the generated ones: low where samples vary little.",
    "copies_pixels_calibrated": "The share of generated pictures that are suspiciously close to a training picture, pixel by "
    "pixel. Held-out pictures show what is usual.",
    "copies_features_calibrated": "The same, measured in the features of the evaluation's network.",
    "rfid": "How far the statistics of reconstructions are from those of the original pictures.",
    "psnr": "Of reconstructions: 20 dB is blurred, 30 dB is close to the original.",
    "ssim": "Of reconstructions: 1 means identical to the original.",
    "denoising_loss": "On held-out pictures, compared with training pictures: a large gap means memorising.",
}


def write_run_page(folder: Path, training: bool = False) -> Path:
    """Write the page for the current contents of a run folder.

    Args:
        folder: the run folder.
        training: whether the page reloads itself.

    Returns:
        The path of ``index.html``.

    Raises:
        OSError: the page cannot be written.
    """
    config = _config(folder)
    shape = _shape(config)
    parts = [f"<p>{text(_status(folder, config, training))}</p>"]
    for heading, figures in (
        ("Samples", _samples(folder, shape)),
        ("Reconstructions", _newest(folder, "reconstruction", "Real pictures above, their reconstructions below", shape)),
        (
            "The denoising: the noisy picture (left), and the network's estimate of the clean one (right)",
            _denoising(folder, shape),
        ),
        (
            "Curves",
            [figure("loss_plot.png", "loss_plot.png, from metrics.csv")] if (folder / "loss_plot.png").is_file() else [],
        ),
        ("Metric card", _card(folder, shape)),
        ("Next steps", [_commands(folder, config)]),
        ("", _earlier(folder, shape)),
    ):
        if figures:
            parts += [f"<h2>{heading}</h2>" if heading else "", *figures]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    # training, sample and evaluate may write at the same time
    with replacing(path, path.with_name(f"index.html.{os.getpid()}.partial")) as partial:
        partial.write_text(page(f"{folder.parent.name}/{folder.name}", parts, training), encoding="utf-8", errors="replace")
    return path


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except Exception:  # yaml may raise anything on an unexpected file
        return {}
    return config if isinstance(config, dict) else {}


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = config.get(name)
    return group if isinstance(group, dict) else {}


def _shape(config: Mapping[str, Any]) -> PictureShape:
    with suppress(Exception):  # an unexpected config may raise anything
        shape = PictureShape.from_config(_group(config, "data"))
        if all(isinstance(value, int) and value > 0 for value in shape):
            return shape
    return PictureShape.of(64)


def _is_diffusion(config: Mapping[str, Any]) -> bool:
    return "sampling" in _group(config, "model")


def _status(folder: Path, config: Mapping[str, Any], training: bool) -> str:
    model = str(_group(config, "model").get("_target_", "")).rpartition(".")[2].removesuffix("Module")
    what = f"{model} on {_group(config, 'data').get('name')} at {_shape(config)}" if model else "No config.yaml"
    try:
        rows = list(csv.DictReader((folder / "metrics.csv").read_text(errors="replace").splitlines()))
        done = f", {int(rows[-1]['step']):,} optimiser steps, epoch {rows[-1]['epoch']}"
    except (OSError, IndexError, KeyError, TypeError, ValueError, csv.Error):
        done = ""
    page = "Training continues; this page reloads itself and was" if training else "This page was"
    return f"{what}{done}. {page} written on {time.strftime('%Y-%m-%d at %H:%M:%S')}."


def _numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Return epochs and files in ascending order."""
    found = (folder / "images").glob(f"{kind}_epoch_*.png")
    return sorted((int(match[1]), path) for path in found if (match := re.search(r"_(\d+)\.png$", path.name)))


def _newest(folder: Path, kind: str, caption: str, shape: PictureShape) -> list[str]:
    return [enlarged(path, folder, f"{caption}, epoch {epoch}", shape) for epoch, path in _numbered(folder, kind)[-1:]]


def _sampled(folder: Path) -> Path | None:
    """Return the folder that ``flowergen.sample`` wrote last."""
    grids = list(folder.glob("samples/*/grid.png"))
    return max(grids, key=_written).parent if grids else None


def _written(path: Path) -> float:
    """Return the modification time, or 0 if the file is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _date(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_written(path)))


def _samples(folder: Path, shape: PictureShape) -> list[str]:
    sampled, generated = _sampled(folder), [path for _, path in _numbered(folder, "generated")]
    if sampled is None or (generated and _written(generated[-1]) > _written(sampled / "grid.png")):
        return _newest(folder, "generated", "Generated", shape)
    where = f"<p>{text(str(sampled.relative_to(folder)))}, written by flowergen.sample, {_date(sampled / 'grid.png')}</p>"
    by_class: dict[str, list[Path]] = {}
    for path in sorted(sampled.glob("pictures/*.png"), key=_number):
        by_class.setdefault(_class_of(path), []).append(path)
    if not 2 <= len(by_class) <= MAX_CLASSES:
        return [where, enlarged(sampled / "grid.png", folder, "The individual pictures are in the same folder", None)]
    return [where] + [
        f'<div class="row"><span>{text(name)}</span>{pictures(paths[:MAX_PER_CLASS], folder, shape)}</div>'
        for name, paths in by_class.items()
    ]


def _class_of(path: Path) -> str:
    """Parse the class in a name by ``sample_files.file_name``: "53 sunflower" for seed0_class053_sunflower_00008.png."""
    match = re.fullmatch(r"seed\d+_class(\d+)_(\w*)_\d+", path.stem)
    return f"{int(match[1])} {match[2].replace('_', ' ')}" if match else ""


def _number(path: Path) -> str:
    """Return the number in the name of a sample, padded to sort; samples are numbered in the order of ``classes=``."""
    return path.stem.rpartition("_")[2].zfill(8)


def _denoising(folder: Path, shape: PictureShape) -> list[str]:
    sampled = _sampled(folder)
    found = sorted(sampled.glob("denoising/*.gif"), key=_number)[:MAX_DENOISED] if sampled else []
    return [enlarged(path, folder, _class_of(path), shape) for path in found]


def _card(folder: Path, shape: PictureShape) -> list[str]:
    found = []
    for path in folder.glob("evaluation/*/card.json"):
        with suppress(Exception):  # json and the formatting may raise anything on an unexpected file
            card = read_card(path.parent) or {}
            rows = [["", "this model", "for comparison", "meaning"], *_rows_of(card)]
            against = f"Against {card['protocol']['num_reference']:,} {card['protocol']['reference']}, {card['made']['date']}"
            weights = card["subject"].get("checkpoint") or "the run's weights"
            found.append(
                (str(card["made"]["date"]), path.parent, table(rows, words=True), f"{against}, of {weights}; the full card: ")
            )
    if not found:
        return []
    _, own, shown_table, against = max(found)
    parts = [shown_table, f'<p>{text(against)}<a href="{linked(own / "card.md", folder)}">card.md</a></p>']
    for space in ("pixels", "features"):
        if (own / f"copies_{space}.png").is_file():
            caption = f"The most suspicious pairs in {space}: samples, and below each the nearest training picture"
            parts.append(enlarged(own / f"copies_{space}.png", folder, caption, shape))
    return parts


def _rows_of(card: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each metric in ``MEANINGS``: name, the model's value, floors, meaning."""
    rows = []
    for metric in (name for name in MEANINGS if name in card["results"]):
        found, words = card["results"][metric], DENOISING_COLUMNS if METRICS[metric].part == "denoising" else COLUMNS
        own = next((column for column in MODEL_COLUMNS[METRICS[metric].part] if column in found), None)
        if own is None:  # only real pictures have a value
            continue
        values = [f"{shown(metric, found[other])} ({words[other]})" for other in words if other in found and other != own]
        label = label_of(metric, card["protocol"]["extractor"])
        value = text(shown(metric, found[own])).replace(" ", "&nbsp;")  # on one line
        rows.append([text(label), value, text("; ".join(values)), text(MEANINGS[metric])])
    return rows


def _commands(folder: Path, config: Mapping[str, Any]) -> str:
    def command(name: str, *arguments: str) -> str:
        return " ".join(["python -m", f"flowergen.{name}", *map(shlex.quote, arguments)])

    run = f"run={folder}"
    lines = [command("sample", run), command("evaluate", run), command("export", run)]
    data = data_options(_group(config, "data")).split()
    if _is_diffusion(config):
        if "discriminator" in _group(_config(folder / "autoencoder"), "model"):  # only a VAE-GAN has a third stage
            lines.append(command("train", "model=decoder", *data, f"diffusion={folder}"))
    elif not config.get("diffusion"):
        lines += [command("vary", run, "image=FILE"), command("train", "model=latent_ddpm", *data, f"autoencoder={folder}")]
    more = "trainer.budget=TIME" if _group(config, "trainer").get("budget") else "trainer.max_epochs=NUMBER"
    lines.append(f"{command('train', f'resume={folder}')} {more}")
    return f"<pre>{text(chr(10).join(lines))}</pre>"


def _earlier(folder: Path, shape: PictureShape) -> list[str]:
    pictures = _numbered(folder, "generated")[-MAX_EARLIER_PICTURES:]
    if len(pictures) < 2:
        return []
    figures = [enlarged(path, folder, f"Generated, epoch {epoch}", shape) for epoch, path in reversed(pictures)]
    return [f"<details><summary>Generated while training</summary>{''.join(figures)}</details>"]
