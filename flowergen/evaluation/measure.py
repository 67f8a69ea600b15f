"""From generated and real pictures to figures, every result beside its floor."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.evaluation import copies
from flowergen.evaluation.extractors import Extractor, in_batches
from flowergen.evaluation.pictures import Generated, PictureSet, RealPictures
from flowergen.evaluation.reconstruction import reconstructions
from flowergen.evaluation.rows import Rows
from flowergen.metrics.set_distances import Gaussian, frechet_distance, gaussian, inception_score, kernel_distance, precision_recall
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.running_means import RunningMeans
from flowergen.randomness import generator

log = logging.getLogger(__name__)

AT_A_TIME = 64  # real pictures through a network
WORST_PAIRS = 16

Results = dict[str, dict[str, list[float]]]  # by metric, by what was measured, a value for each repeat


@dataclass(frozen=True)
class Judges:
    """The networks that pictures are judged by.

    Attributes:
        extractor: of the features in which sets are compared; None where its weights are missing.
        classifier: of classes, trained on the real pictures; None without labels.
        cache_dir: where the features of real pictures lie.
    """

    extractor: Extractor | None
    classifier: Extractor | None
    cache_dir: Path


@dataclass
class Pairs:
    """The samples that look most like copies.

    Attributes:
        space: ``pixels`` or ``features``.
        samples: (n, 3, S, S) uint8.
        nearest: (n, 3, S, S) uint8, the training picture that each is nearest to.
        ratio: (n,) d1 / d2.
    """

    space: str
    samples: np.ndarray
    nearest: np.ndarray
    ratio: np.ndarray


@dataclass
class Measured:
    """What was found.

    Attributes:
        results: of every metric.
        pairs: worst first.
        notes: what a reader must know.
    """

    results: Results = field(default_factory=dict)
    pairs: list[Pairs] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, of: str, value: float) -> None:
        """One more value."""
        self.results.setdefault(metric, {}).setdefault(of, []).append(float(value))


class SetDistances:
    """Distances of sets of pictures to the reference, in the features of a network.

    Args:
        extractor: of the features.
        real: the reference among them.
        cache_dir: where the features of real pictures lie.
    """

    def __init__(self, extractor: Extractor, real: RealPictures, cache_dir: Path):
        self.extractor, self.cache_dir = extractor, cache_dir
        self.reference, _ = self.of(real.reference)
        self._gaussian: Gaussian = gaussian(self.reference)

    def of(self, pictures: PictureSet) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) features and (N, K) logits of real pictures."""
        features, logits = collection_features(self.extractor, pictures, self.cache_dir)
        return features[pictures.rows], logits[pictures.rows]

    def add(self, measured: Measured, of: str, features: np.ndarray, logits: np.ndarray, prefix: str = "") -> None:
        """Every distance of one set."""
        measured.add(f"{prefix}fid", of, frechet_distance(gaussian(features), self._gaussian))
        measured.add(f"{prefix}kid", of, kernel_distance(features, self.reference))
        if prefix:
            return
        precision, recall = precision_recall(self.reference, features)
        measured.add("precision", of, precision)
        measured.add("recall", of, recall)
        if logits.shape[1]:
            measured.add("inception_score", of, inception_score(logits))


def collection_features(extractor: Extractor, pictures: PictureSet, cache_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of all pictures of a collection, computed once for every command and run.

    Args:
        extractor: of them.
        pictures: some of the collection.
        cache_dir: the folder of all caches; a killed process's work is gone on with.

    Returns:
        (M, D) and (M, K) float32, read-only memory maps.

    Raises:
        UserError: they cannot be written.
    """
    images = pictures.images
    identity = f"{extractor.name}/{extractor.weights}/{extractor.resize}/{pictures.key}"
    folder = cache_dir / f"features_{blake2b(identity.encode(), digest_size=8).hexdigest()}"
    fields = {"features": ((extractor.num_features,), "<f4"), "logits": ((extractor.num_logits,), "<f4")}
    rows = Rows(folder, fields)
    if rows.num < len(images):
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                rows = Rows(folder, fields)  # another process may have computed them meanwhile
                if rows.num < len(images):
                    log.info("features of %s real pictures by %s, once", f"{len(images):,}", extractor.name)
                rest = in_batches(extractor, images[rows.num :], AT_A_TIME)
                for features, logits in with_bar("features", rest, rows.num, len(images)):
                    rows.append(features=features, logits=logits)
        except OSError as error:
            raise UserError(
                f"the features of {len(images):,} pictures cannot be written to {cache_dir} ({error.strerror}): "
                "make room there or choose another folder with paths.cache_dir="
            ) from error
    return rows.array("features"), rows.array("logits")


def measure_samples(
    generated: Generated, real: RealPictures, judges: Judges, num: int, repeats: int, work: Path, measured: Measured
) -> None:
    """Distances, class consistency and copies of generated pictures.

    Args:
        generated: num * repeats pictures.
        real: what they are held against.
        judges: of them.
        num: pictures in a repeat.
        repeats: sets of pictures that are measured apart.
        work: folder for what is found on the way; a killed process's work is gone on with.
        measured: where results go.

    Raises:
        UserError: the disk is full.
    """
    extractor, classifier = judges.extractor, judges.classifier
    rows = _judged(generated, extractor, classifier, work)
    parts = [slice(first, first + num) for first in range(0, num * repeats, num)]
    labels = generated.labels.numpy()
    features, logits, classes = (rows.array(name) for name in ("features", "logits", "class"))

    if extractor is not None:
        log.info("distances to %s %s", f"{len(real.reference):,}", real.reference.name)
        distances = SetDistances(extractor, real, judges.cache_dir)
        for part in parts:
            distances.add(measured, "samples", features[part], logits[part])
        for subset in floor_subsets(real, num, repeats):
            distances.add(measured, "train", *distances.of(subset))
    if classifier is not None:
        for part in parts if (labels >= 0).all() else ():
            measured.add("class_accuracy", "samples", (classes[part] == labels[part]).mean())
        reference = real.reference
        _, real_logits = collection_features(classifier, reference, judges.cache_dir)
        known = reference.rows[reference.labels[reference.rows] >= 0]
        if len(known):
            right = real_logits[known].argmax(1) == reference.labels[known]
            measured.add("class_accuracy", "held_out" if real.calibration else "train", right.mean())
    if real.train is None:
        measured.notes.append("copies were not looked for: nobody said what the generator was trained on (train=DIR)")
    elif len(real.train) > 1:
        log.info("looking for copies of %s training pictures", f"{len(real.train):,}")
        _copies(generated, real, judges, rows, parts, measured)


def _judged(generated: Generated, extractor: Extractor | None, classifier: Extractor | None, work: Path) -> Rows:
    """Every generated picture once through every judge; pixels are kept for the search for copies."""
    total, size = len(generated.labels), min(generated.image_size, copies.LARGEST_PX)
    rows = Rows(
        work / "samples",
        {
            "pixels": ((3 * size**2,), "|u1"),
            "features": ((extractor.num_features if extractor else 0,), "<f4"),
            "logits": ((extractor.num_logits if extractor else 0,), "<f4"),
            "class": ((), "<i8"),
        },
    )
    log.info("%s pictures: %s%s", f"{total:,}", generated.says, f", going on at {rows.num:,}" if rows.num else "")
    try:
        for x in with_bar("pictures", generated.batches(rows.num), rows.num, total):
            images = torch.from_numpy(x)
            empty = torch.empty(len(x), 0)
            features, logits = extractor.features(images) if extractor else (empty, empty)
            if classifier is None:
                classes = np.full(len(x), -1)
            else:
                own = logits if extractor is classifier else classifier.features(images)[1]
                classes = own.argmax(1).numpy()
            pixels = copies.pixel_vectors(x)
            rows.append(pixels=pixels, features=features.numpy(), logits=logits.numpy(), **{"class": classes})
    except OSError as error:
        raise UserError(
            f"{work} cannot be written to ({error.strerror}): make room, and the same command goes on where it stopped"
        ) from error
    return rows


def _copies(
    generated: Generated, real: RealPictures, judges: Judges, rows: Rows, parts: Sequence[slice], measured: Measured
) -> None:
    assert real.train is not None
    train = copies.pixel_vectors(real.train.at(np.arange(len(real.train))))
    kept = copies.distinct(train, real.mirrored)
    if len(kept) < len(train):
        measured.notes.append(f"{len(train) - len(kept):,} of {len(train):,} training pictures are near-duplicates of others")

    def in_pixels(pictures: PictureSet) -> list[np.ndarray]:
        vectors = copies.pixel_vectors(pictures.at(np.arange(len(pictures))))
        return copies.with_mirror_images(vectors, real.mirrored)

    spaces = [("pixels", train[kept], in_pixels, copies.with_mirror_images(rows.array("pixels"), real.mirrored))]
    network = judges.extractor or judges.classifier
    if network is not None and judges.extractor is not None:
        features, _ = collection_features(network, real.train, judges.cache_dir)

        def in_features(pictures: PictureSet) -> list[np.ndarray]:
            found, _ = collection_features(network, pictures, judges.cache_dir)
            return [found[pictures.rows]]

        spaces.append(("features", features[real.train.rows[kept]], in_features, [rows.array("features")]))

    for space, candidates, vectors_of, variants in spaces:
        found = copies.neighbours(variants, candidates, kept)
        bounds = {"third": copies.COPY_RATIO}
        if real.calibration is not None:
            bounds["calibrated"] = copies.calibrated_ratio(copies.neighbours(vectors_of(real.calibration), candidates, kept).ratio)
            control = copies.neighbours(vectors_of(real.reference), candidates, kept).ratio
            for name, below in bounds.items():
                measured.add(f"copies_{space}_{name}", "held_out", copies.copy_rate(control, below))
            measured.add(f"copy_bound_{space}", "held_out", bounds["calibrated"])
        for name, below in bounds.items():
            for part in parts:
                measured.add(f"copies_{space}_{name}", "samples", copies.copy_rate(found.ratio[part], below))
        numbers = copies.worst(found.ratio, WORST_PAIRS)
        nearest = real.train.at(found.row[numbers, 0])
        measured.pairs.append(Pairs(space, generated.at(numbers.tolist()), nearest, found.ratio[numbers]))


def measure_reconstructions(
    model: ImageModel, real: RealPictures, judges: Judges, num: int, repeats: int, work: Path, measured: Measured
) -> None:
    """Distances of an autoencoder's reconstructions: of the reference to itself (rFID), and of training pictures to the
    reference, which is what samples through this decoder can reach.

    Args:
        model: an autoencoder in eval mode.
        real: the pictures.
        judges: of them.
        num: training pictures in a repeat.
        repeats: sets of training pictures.
        work: see ``measure_samples``.
        measured: where results go.

    Raises:
        UserError: the disk is full.
    """
    extractor = judges.extractor
    if extractor is None:
        return
    distances = SetDistances(extractor, real, judges.cache_dir)
    sets = [("r", "reference", real.reference), *(("", "autoencoder", subset) for subset in floor_subsets(real, num, repeats))]
    fields = {"features": ((extractor.num_features,), "<f4"), "logits": ((extractor.num_logits,), "<f4")}
    for number, (prefix, of, pictures) in enumerate(sets):
        rows = Rows(work / f"reconstructions_{number}", fields)
        log.info("reconstructions of %s %s", f"{len(pictures):,}", pictures.name)
        try:
            for x in with_bar("reconstructions", reconstructions(model, pictures, rows.num), rows.num, len(pictures)):
                for features, logits in in_batches(extractor, x, AT_A_TIME):
                    rows.append(features=features, logits=logits)
        except OSError as error:
            raise UserError(
                f"{work} cannot be written to ({error.strerror}): make room, and the same command goes on where it stopped"
            ) from error
        distances.add(measured, of, rows.array("features"), rows.array("logits"), prefix)


def measure_denoising(model: LatentDDPMModule, real: RealPictures, measured: Measured) -> None:
    """The diffusion loss at each quarter of the noise levels, of held-out and of as many training pictures.

    Args:
        model: in eval mode.
        real: the pictures.
        measured: where results go.
    """
    assert real.train is not None
    log.info("denoising loss")
    num = min(len(real.reference), len(real.train))
    sets = {"train": real.train.subset(np.linspace(0, len(real.train) - 1, num).astype(int))}
    if real.calibration is not None:
        sets["held_out"] = real.reference
    for of, pictures in sets.items():
        means = RunningMeans()
        for first in range(0, len(pictures), AT_A_TIME):
            rows = pictures.rows[first : first + AT_A_TIME]
            x = torch.from_numpy(pictures.images[rows]).to(model.device).float().div_(255)
            with torch.inference_mode():
                label = torch.from_numpy(pictures.labels[rows]).to(model.device)
                means.update(model.scores(Batch(x, label, torch.from_numpy(rows))))
        for name, value in means.compute().items():
            measured.add(f"denoising_{name}", of, value)


def floor_subsets(real: RealPictures, num: int, repeats: int) -> list[PictureSet]:
    """Training pictures, as many as there are samples in a repeat: what a perfect generator of new pictures would score.

    Args:
        real: the pictures.
        num: of a repeat; fewer where there are not as many.
        repeats: how many sets.
    """
    if real.train is None or real.train.name == real.reference.name:
        return []
    every = len(real.train)
    draws = (generator(0, repeat, "floor").permutation(every)[:num] for repeat in range(repeats))
    return [real.train.subset(np.sort(draw)) for draw in draws]


def with_bar(what: str, batches: Iterator[Any], done: int, total: int) -> Iterator[Any]:
    """Batches, or pairs of them, with a bar on a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch[0]) if isinstance(batch, tuple) else len(batch))
