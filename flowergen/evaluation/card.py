"""The metric card: results beside their floors, and the protocol needed to interpret them."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from flowergen.errors import UserError

VERSION = 2  # of the protocol: increment it if the same settings would give different values


class Metric(NamedTuple):
    """How to display a metric.

    Attributes:
        label: display name; see ``label_of``.
        style: format specification of its values.
        better: ``lower`` or ``higher``; empty if neither.
        part: section of the card.
    """

    label: str
    style: str
    better: str
    part: str = "samples"


METRICS = {
    "fid": Metric("FID", ".2f", "lower"),
    "kid": Metric("KID x 1000", ".2f", "lower"),
    "precision": Metric("precision", ".3f", "higher"),
    "recall": Metric("recall", ".3f", "higher"),
    "inception_score": Metric("Inception Score", ".2f", "higher"),
    "class_accuracy": Metric("of their class", ".1%", "higher", "copies"),
    "copies_pixels_third": Metric("copies by pixels, d1/d2 < 1/3", ".2%", "lower", "copies"),
    "copies_pixels_calibrated": Metric("copies by pixels, calibrated", ".2%", "lower", "copies"),
    "copies_features_third": Metric("copies by features, d1/d2 < 1/3", ".2%", "lower", "copies"),
    "copies_features_calibrated": Metric("copies by features, calibrated", ".2%", "lower", "copies"),
    "copy_bound_pixels": Metric("calibrated bound of d1/d2, pixels", ".3f", "", "copies"),
    "copy_bound_features": Metric("calibrated bound of d1/d2, features", ".3f", "", "copies"),
    "rfid": Metric("rFID", ".2f", "lower", "reconstructions"),
    "rkid": Metric("rKID x 1000", ".2f", "lower", "reconstructions"),
    "psnr": Metric("PSNR, dB", ".2f", "higher", "reconstructions"),
    "ssim": Metric("SSIM", ".3f", "higher", "reconstructions"),
    "lpips": Metric("LPIPS (VGG-16)", ".3f", "lower", "reconstructions"),
    "sharpness": Metric("sharpness", ".2f", "", "reconstructions"),
    "elbo": Metric("common ELBO, nats", ",.0f", "higher", "reconstructions"),
    "rate": Metric("rate: KL, nats", ",.1f", "", "reconstructions"),
    "distortion": Metric("distortion, nats", ",.0f", "lower", "reconstructions"),
    "active_units": Metric("active latent units", ".0f", "", "reconstructions"),
    "denoising_loss": Metric("denoising loss", ".4f", "lower", "denoising"),
    "denoising_loss_noise_1": Metric("denoising loss, least noise", ".4f", "lower", "denoising"),
    "denoising_loss_noise_2": Metric("denoising loss, second quarter", ".4f", "lower", "denoising"),
    "denoising_loss_noise_3": Metric("denoising loss, third quarter", ".4f", "lower", "denoising"),
    "denoising_loss_noise_4": Metric("denoising loss, most noise", ".4f", "lower", "denoising"),
}
PER_MILLE = ("kid", "rkid")
COLUMNS = {  # columns, in this order
    "samples": "samples",
    "reference": "reconstructed reference",
    "train": "floor: training pictures",
    "autoencoder": "floor: training pictures, reconstructed",
    "held_out": "held-out pictures",
    "samples_as_floor": "as many samples as the floor has pictures",
}
DENOISING_COLUMNS = {"train": "as many training pictures", "held_out": "held-out pictures"}
ENOUGH_FOR_FID = 10_000  # pictures; the minimum that its authors recommend (github.com/bioinf-jku/TTUR)
INCEPTION_NAMES = {  # metrics whose names are reserved for Inception features, and their names on other features
    "fid": "Fréchet distance",
    "kid": "kernel distance x 1000",
    "rfid": "Fréchet distance",
    "rkid": "kernel distance x 1000",
    "inception_score": "score by the Inception Score's formula",
}


def hash_of(plain: Mapping[str, Any]) -> str:
    """Return a hash of plain data, 12 hexadecimal digits."""
    return blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=6).hexdigest()


def summarised(results: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """Return mean, standard deviation (n - 1) and values over repeats; no standard deviation if a value is not finite.

    Args:
        results: one value per repeat, by metric and column.
    """
    return {
        metric: {
            column: {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None,
                "values": list(values),
            }
            for column, values in columns.items()
        }
        for metric, columns in results.items()
    }


def read_card(folder: Path) -> dict[str, Any] | None:
    """Return the card in a folder, or None if there is none.

    Raises:
        UserError: the card is damaged.
    """
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): delete its folder and evaluate again") from error
    if not isinstance(card, dict) or not isinstance(card.get("protocol"), dict) or not isinstance(card.get("results"), dict):
        raise UserError(f"{path} is not a metric card: delete its folder and evaluate again")
    return card


def newest_card(path: Path) -> dict[str, Any]:
    """Return the newest card of a run folder, or the card given by its folder or file.

    Raises:
        UserError: there is no card.
    """
    if path.name == "card.json":
        path = path.parent
    folders = [path] if (path / "card.json").is_file() else [card.parent for card in path.glob("evaluation/*/card.json")]
    if not folders:
        raise UserError(f"{path} has no metric card: python -m flowergen.evaluate run={path} makes one")
    cards = [card for folder in folders if (card := read_card(folder))]
    return max(cards, key=lambda card: str(card["made"]["date"]))


def markdown(card: Mapping[str, Any]) -> str:
    """Format a card as Markdown: tables, missing metrics, notes, protocol and provenance."""
    protocol, subject, results = card["protocol"], card["subject"], card["results"]
    sizes = {column: f"{COLUMNS[column]}, n = {count:,}" for column, count in card["counts"].items() if column in COLUMNS}
    lines = [f"# {subject['what']}", ""]
    lines += [f"{key}: {value}  " for key, value in subject.items() if key != "what" and value is not None]
    against = f"Against {protocol['num_reference']:,} {protocol['reference']}"
    parts = {"samples": against, "copies": "Classes and copies", "reconstructions": "Reconstructions", "denoising": "Denoising"}
    for part, title in parts.items():
        names = [name for name, metric in METRICS.items() if name in results and metric.part == part]
        columns = [column for column in COLUMNS if any(column in results[name] for name in names)]
        if columns:
            heads = DENOISING_COLUMNS if part == "denoising" else sizes
            lines += ["", f"## {title}", "", *_table(names, columns, results, protocol["extractor"], heads)]
        if part == "samples" and columns:
            lines += ["", _how_to_read(protocol["repeats"], card["counts"]["samples"])]
        if part == "copies" and card["probe"] and card["probe"]["accuracy"] is not None:
            right = format(card["probe"]["accuracy"], ".1%")
            lines += ["", f"The linear probe, not fitted to the validation pictures, classifies {right} of them correctly."]
    for heading, entries in (("Not measured", card["missing"]), ("Notes", card["notes"])):
        if entries:
            lines += ["", f"## {heading}", "", *(f"- {entry}" for entry in entries)]
    lines += ["", f"## Protocol {card['protocol_hash']}", "", "Only cards with the same protocol can be compared.", ""]
    lines += [f"- {key}: {value}" for key, value in protocol.items()]
    lines += ["", "## Made", "", *(f"- {key}: {_in_words(value)}" for key, value in card["made"].items())]
    return "\n".join(lines) + "\n"


def _how_to_read(repeats: int, num: int) -> str:
    spread = f"± is the standard deviation over {repeats} sets of pictures, of floors and of samples." if repeats > 1 else ""
    floors = "A floor is also a mean over random sets, so a good model can fall below it by chance."
    bias = "The Fréchet distance has a bias that falls with n (arXiv:1911.07023): compare it at equal n, beside its floor."
    few = f"n = {num:,} is too small for it ({ENOUGH_FOR_FID:,} are recommended): prefer the kernel distance, which has none."
    return " ".join(filter(None, (spread, floors, bias, few if num < ENOUGH_FOR_FID else "")))


def _in_words(value: Any) -> str:
    return ", ".join(f"{key} {child}" for key, child in value.items()) if isinstance(value, dict) else str(value)


def _table(
    names: Sequence[str], columns: Sequence[str], results: Mapping[str, Any], extractor: str, sizes: Mapping[str, str]
) -> list[str]:
    rows = [["", *(sizes.get(column, COLUMNS[column]) for column in columns)]]
    for name in names:
        arrow = f" ({METRICS[name].better} is better)" if METRICS[name].better else ""
        cells = [shown(name, results[name].get(column)) for column in columns]
        rows.append([label_of(name, extractor) + arrow, *cells])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table with aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def label_of(metric: str, extractor: str) -> str:
    """Return a metric's display name; FID and the like are renamed if the features are not Inception's."""
    if metric not in INCEPTION_NAMES or extractor == "inception":
        return METRICS[metric].label
    return f"{INCEPTION_NAMES[metric]} ({Path(extractor).name})"


def key_in_logs(metric: str, extractor: str) -> str:
    """Return a metric's log key; FID and the like name the extractor if it is not Inception: ``fid_efficientnet``."""
    if metric not in INCEPTION_NAMES or extractor == "inception":
        return metric
    return f"{metric}_{Path(extractor.rpartition(':')[2]).stem}"


def shown(metric: str, entry: Mapping[str, Any] | None) -> str:
    """Format mean ± standard deviation in the metric's own format; empty if there is no entry."""
    if entry is None:
        return ""
    if not math.isfinite(entry["mean"]):
        return "not a number"
    style, scale = METRICS[metric].style, 1000 if metric in PER_MILLE else 1
    mean = format(entry["mean"] * scale, style)
    return mean if entry["std"] is None else f"{mean} ± {format(entry['std'] * scale, style)}"


def comparison(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare cards in one table, one column per card, with each metric's floors below it.

    Args:
        cards: at least two.

    Raises:
        UserError: their protocols differ; the message names the differences.
    """
    first = cards[0]
    for other in cards[1:]:
        keys = dict.fromkeys([*first["protocol"], *other["protocol"]])
        differing = [key for key in keys if first["protocol"].get(key) != other["protocol"].get(key)]
        if differing:
            what = "; ".join(f"{key}: {first['protocol'].get(key)} and {other['protocol'].get(key)}" for key in differing)
            raise UserError(
                f"{first['subject']['what']} and {other['subject']['what']} were measured by different protocols and cannot be "
                f"compared: {what}. Evaluate them with the same settings, or name a card's own folder: RUN/evaluation/HASH"
            )
    extractor, left_out, notes = first["protocol"]["extractor"], set[str](), list[str]()
    probes = [card.get("probe", card.get("classifier")) for card in cards]  # "classifier" in protocol version 1
    if any(probe != probes[0] for probe in probes):
        left_out.add("class_accuracy")
        notes.append("class consistency is left out: the cards used different linear probes")
    tasks = {card["subject"].get("denoising") for card in cards} - {None}
    if len(tasks) > 1:
        left_out |= {name for name, metric in METRICS.items() if metric.part == "denoising"}
        notes.append(f"the denoising loss is left out: the cards measured it for different tasks ({'; '.join(sorted(tasks))})")
    rows = [["", *(_title(card["subject"]) for card in cards)]]
    rows.append(["sampled by", *(str(card["subject"].get("sampled by") or "") for card in cards)])
    for metric in (name for name in METRICS if name not in left_out):
        for column, words in COLUMNS.items():
            entries = [card["results"].get(metric, {}).get(column) for card in cards]
            if any(entries):
                label = label_of(metric, extractor)
                words = DENOISING_COLUMNS[column] if METRICS[metric].part == "denoising" else words
                rows.append(
                    [label if column == "samples" else f"{label}, {words}", *(shown(metric, entry) for entry in entries)]
                )
    return [f"protocol {first['protocol_hash']}", "", *table(rows), *notes]


def _title(subject: Mapping[str, Any]) -> str:
    checkpoint = subject.get("checkpoint")
    return f"{subject['what']} {checkpoint}" if checkpoint else subject["what"]
