"""Metrics of generated pictures against real ones, each result beside its floor."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from flowergen.data.batch import Batch
from flowergen.data.image_datamodule import evenly_spaced
from flowergen.data.progress_bar import num_pictures, with_progress_bar
from flowergen.errors import UserError
from flowergen.evaluation import copies
from flowergen.evaluation.extractors import fields_of, in_batches
from flowergen.evaluation.features import CHUNK_SIZE, collection_features
from flowergen.evaluation.measured import Measured, Pairs
from flowergen.evaluation.networks import EvaluationNetworks
from flowergen.evaluation.pictures import Generated, PictureSet, RealPictures, repeated
from flowergen.evaluation.reconstruction import reconstructions
from flowergen.evaluation.reference import CopySpace, PreparedReference
from flowergen.evaluation.rows import Rows
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.running_means import RunningMeans
from flowergen.randomness import generator

log = logging.getLogger(__name__)

WORST_PAIRS = 16
SEARCH_CHUNK = 1024  # samples searched at a time


def measure_samples(
    generated: Generated, prepared: PreparedReference, num: int, repeats: int, work: Path, measured: Measured
) -> None:
    """Measure distances, class consistency and copies of generated pictures.

    Args:
        generated: num * repeats pictures.
        prepared: the real pictures and the networks.
        num: pictures per repeat.
        repeats: number of sets, each measured separately.
        work: folder for intermediate results; an interrupted computation is resumed.
        measured: receives the results.

    Raises:
        UserError: the disk is full.
    """
    real, networks = prepared.real, prepared.networks
    rows = _network_outputs(generated, networks, work)
    parts = [slice(first, first + num) for first in range(0, num * repeats, num)]
    labels = generated.labels.numpy()
    features, logits, classes = (rows.array(name) for name in ("features", "logits", "class"))

    if prepared.distances is not None:
        log.info("distances to %s %s", f"{len(real.reference):,}", real.reference.name)
        floors = floor_subsets(real, num, repeats, bool((labels >= 0).all()))
        for part in parts:
            prepared.distances.add(measured, "samples", features[part], logits[part])
            if floors and len(floors[0]) < num:  # distances are larger for fewer pictures: compare at equal n
                fewer = slice(part.start, part.start + len(floors[0]))
                prepared.distances.add(measured, "samples_as_floor", features[fewer], logits[fewer])
        for subset in floors:
            prepared.distances.add(measured, "train", *prepared.distances.of(subset))
    if networks.probe is not None:
        for part in parts if (labels >= 0).all() else ():
            measured.add("class_accuracy", "samples", (classes[part] == labels[part]).mean())
        reference = real.reference
        real_features, _ = collection_features(networks.probe.extractor, reference, networks.cache_dir)
        known = reference.rows[reference.labels[reference.rows] >= 0]
        if len(known):
            correct = networks.probe.classes(real_features[known]) == reference.labels[known]
            measured.add("class_accuracy", "held_out" if real.calibration else "train", correct.mean())
    _add_copies(generated, prepared, rows, parts, measured)


def _network_outputs(generated: Generated, networks: EvaluationNetworks, work: Path) -> Rows:
    """Pass every generated picture through every network once; pixels are kept for the copy search."""
    extractor, probe = networks.extractor, networks.probe
    total, num_pixels = len(generated.labels), math.prod(copies.compared_shape(generated.picture_shape))
    rows = Rows(work / "samples", {"pixels": ((num_pixels,), "|u1"), **fields_of(extractor), "class": ((), "<i8")})
    log.info("%s pictures: %s%s", f"{total:,}", generated.description, f", resuming at {rows.num:,}" if rows.num else "")
    with _full_disk_as_user_error(work):
        for x in with_progress_bar("pictures", generated.batches(rows.num), total, rows.num, num_pictures):
            images = torch.from_numpy(x)
            empty = torch.empty(len(x), 0)
            features, logits = extractor.features(images) if extractor else (empty, empty)
            if probe is None:
                classes = np.full(len(x), -1)
            else:
                own = features if extractor is probe.extractor else probe.extractor.features(images)[0]
                classes = probe.classes(own.numpy())
            pixels = copies.pixel_vectors(x)
            rows.append(pixels=pixels, features=features.numpy(), logits=logits.numpy(), **{"class": classes})
    return rows


@contextmanager
def _full_disk_as_user_error(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{work} cannot be written to ({error.strerror}): make room, and the same command continues where it stopped"
        ) from error


def _add_copies(
    generated: Generated, prepared: PreparedReference, rows: Rows, parts: Sequence[slice], measured: Measured
) -> None:
    for space in prepared.copy_spaces:
        log.info("looking for copies of %s training pictures in %s", f"{len(space.candidates):,}", space.name)
        found = _neighbours(prepared, space, rows.array(space.name))
        for name, below in space.bounds.items():
            for part in parts:
                measured.add(f"copies_{space.name}_{name}", "samples", copies.copy_rate(found.ratio[part], below))
            if space.control is not None:
                measured.add(f"copies_{space.name}_{name}", "held_out", copies.copy_rate(space.control, below))
        if "calibrated" in space.bounds:
            measured.add(f"copy_bound_{space.name}", "held_out", space.bounds["calibrated"])
        numbers = copies.indices_of_smallest(found.ratio, WORST_PAIRS)
        assert prepared.real.train is not None
        nearest = prepared.real.train.at(found.row[numbers, 0])
        measured.pairs.append(Pairs(space.name, generated.at(numbers.tolist()), nearest, found.ratio[numbers]))


def _neighbours(prepared: PreparedReference, space: CopySpace, vectors: np.ndarray) -> copies.Neighbours:
    """Find the neighbours of samples in chunks, as mirror images take memory."""
    starts = range(0, len(vectors), SEARCH_CHUNK)
    parts = [vectors[first : first + SEARCH_CHUNK] for first in starts]
    found = [
        copies.neighbours(prepared.variants(space.name, part), space.candidates, prepared.kept)
        for part in with_progress_bar("searching", parts, len(vectors), size=len)
    ]
    return copies.Neighbours(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def measure_reconstructions(
    model: ImageModel, prepared: PreparedReference, floors: Sequence[PictureSet], work: Path, measured: Measured
) -> None:
    """Measure distances of an autoencoder's reconstructions to the reference.

    Reconstructions of the reference itself give the rFID; those of training pictures give the floor for samples that pass
    through this decoder.

    Args:
        model: an autoencoder in eval mode.
        prepared: the real pictures and the networks.
        floors: see ``floor_subsets``.
        work: see ``measure_samples``.
        measured: receives the results.

    Raises:
        UserError: the disk is full.
    """
    real, distances = prepared.real, prepared.distances
    if distances is None:
        return
    extractor = distances.extractor
    sets = [("r", "reference", real.reference), *(("", "autoencoder", subset) for subset in floors)]
    for number, (prefix, column, pictures) in enumerate(sets):
        rows = Rows(work / f"reconstructions_{number}", fields_of(extractor))
        log.info("reconstructions of %s %s", f"{len(pictures):,}", pictures.name)
        with _full_disk_as_user_error(work):
            for x in with_progress_bar(
                "reconstructions", reconstructions(model, pictures, rows.num), len(pictures), rows.num, num_pictures
            ):
                for features, logits in in_batches(extractor, x, CHUNK_SIZE):
                    rows.append(features=features, logits=logits)
        distances.add(measured, column, rows.array("features"), rows.array("logits"), prefix)


def measure_denoising(model: LatentDDPMModule, real: RealPictures, seed: int, measured: Measured) -> None:
    """Measure the diffusion loss in each quarter of the noise levels, on held-out and on equally many training pictures.

    Args:
        model: a model in eval mode.
        real: the real pictures.
        seed: random seed for times and noise.
        measured: receives the results.
    """
    assert real.train is not None
    log.info("denoising loss")
    num = min(len(real.reference), len(real.train))
    sets = {"train": real.train.subset(evenly_spaced(np.arange(len(real.train)), num))}
    if real.calibration is not None:
        sets["held_out"] = real.reference
    for column, pictures in sets.items():
        means = RunningMeans()
        starts = range(0, len(pictures), CHUNK_SIZE)
        for first in with_progress_bar("denoising", starts, len(starts)):
            rows = pictures.rows[first : first + CHUNK_SIZE]
            x = torch.from_numpy(pictures.images[rows]).to(model.device).float().div_(255)
            with torch.inference_mode():
                label = torch.from_numpy(pictures.labels[rows]).to(model.device)
                means.update(model.scores(Batch(x, label, torch.from_numpy(rows)), seed))
        for name, value in means.compute().items():
            measured.add(f"denoising_{name}", column, value)


def floor_subsets(real: RealPictures, num: int, repeats: int, by_class: bool) -> list[PictureSet]:
    """Draw sets of training pictures, each the size of a repeat; they score as a perfect generator of new pictures would.

    Args:
        real: the real pictures.
        num: pictures per repeat; if there are fewer, one set of all is returned.
        repeats: number of sets.
        by_class: whether to match the reference's class counts, as class-conditional samples do; else classes are ignored.

    Returns:
        The sets; empty if the training pictures are unknown or overlap with the reference.
    """
    train, reference = real.train, real.reference
    if train is None or (train.key == reference.key and np.isin(reference.rows, train.rows).any()):
        return []  # nothing is held out
    if num >= len(train):
        return [train]
    orders = [generator(0, repeat, "floor").permutation(len(train)) for repeat in range(repeats)]
    if not by_class:
        return [train.subset(np.sort(order[:num])) for order in orders]
    labels, wanted = train.labels[train.rows], repeated(reference.labels[reference.rows], num)
    subsets = []
    for order in orders:
        of_class = [order[labels[order] == label][: (wanted == label).sum()] for label in np.unique(wanted)]
        missing = num - sum(map(len, of_class))  # of classes with fewer training pictures
        rest = order[~np.isin(order, np.concatenate(of_class))][:missing]
        subsets.append(train.subset(np.sort(np.concatenate([*of_class, rest]))))
    return subsets
