"""Real pictures, prepared once for any number of generators."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowergen.evaluation import copies
from flowergen.evaluation.extractors import Extractor
from flowergen.evaluation.features import collection_features
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.networks import EvaluationNetworks
from flowergen.evaluation.pictures import PictureSet, RealPictures
from flowergen.metrics.set_distances import frechet_distance, gaussian, inception_score, kernel_distance, precision_recall

log = logging.getLogger(__name__)


class SetDistances:
    """Distances of sets of pictures to the reference, in the features of a network.

    Args:
        extractor: the feature extractor.
        real: the real pictures, which include the reference.
        cache_dir: cache folder for the features of real pictures.
    """

    def __init__(self, extractor: Extractor, real: RealPictures, cache_dir: Path):
        self.extractor, self.cache_dir = extractor, cache_dir
        self.reference, _ = self.of(real.reference)
        self._gaussian = gaussian(self.reference)

    def of(self, pictures: PictureSet) -> tuple[np.ndarray, np.ndarray]:
        """Return (N, D) features and (N, K) logits of real pictures."""
        features, logits = collection_features(self.extractor, pictures, self.cache_dir)
        return features[pictures.rows], logits[pictures.rows]

    def add(self, measured: Measured, column: str, features: np.ndarray, logits: np.ndarray, prefix: str = "") -> None:
        """Add every distance of one set to the results."""
        measured.add(f"{prefix}fid", column, frechet_distance(gaussian(features), self._gaussian))
        measured.add(f"{prefix}kid", column, kernel_distance(features, self.reference))
        if prefix:
            return
        precision, recall = precision_recall(self.reference, features)
        measured.add("precision", column, precision)
        measured.add("recall", column, recall)
        if logits.shape[1]:
            measured.add("inception_score", column, inception_score(logits))


@dataclass(frozen=True)
class CopySpace:
    """A space in which to search for copies, prepared for any number of generators.

    Attributes:
        name: ``pixels`` or ``features``.
        candidates: (K, D) training pictures without near-duplicates.
        bounds: d1 / d2 below which a picture counts as a copy, by name.
        control: (N,) d1 / d2 of held-out pictures; None if nothing is held out.
    """

    name: str
    candidates: np.ndarray
    bounds: dict[str, float]
    control: np.ndarray | None


class PreparedReference:
    """Everything that is computed from real pictures alone.

    Args:
        real: the real pictures.
        networks: the evaluation networks.
        notes: receives notes for the metric card.
    """

    def __init__(self, real: RealPictures, networks: EvaluationNetworks, notes: list[str]):
        self.real, self.networks = real, networks
        self.distances = SetDistances(networks.extractor, real, networks.cache_dir) if networks.extractor else None
        self.copy_spaces: list[CopySpace] = []
        if real.train is None:
            notes.append("copies were not searched for: give the training pictures with train=DIR")
        elif len(real.train) > 1:
            self._prepare_copies(real.train, notes)

    def _prepare_copies(self, train: PictureSet, notes: list[str]) -> None:
        log.info("looking for near-duplicates among %s training pictures", f"{len(train):,}")
        vectors = copies.pixel_vectors(train.images, train.rows)
        self.kept = copies.distinct(self.variants("pixels", vectors))
        if len(self.kept) < len(vectors):
            notes.append(
                f"{len(vectors) - len(self.kept):,} of {len(vectors):,} training pictures are near-duplicates of others"
            )
        self._add_space("pixels", vectors[self.kept], notes)
        if self.distances is not None:
            self._add_space("features", self.distances.of(train)[0][self.kept], notes)

    def _add_space(self, name: str, candidates: np.ndarray, notes: list[str]) -> None:
        bounds, control = {"third": copies.COPY_RATIO}, None
        if self.real.calibration is not None:
            held_out = self._ratio(name, self.real.calibration, candidates)
            bounds["calibrated"], by_chance = copies.calibrated_ratio(held_out)
            notes.append(
                f"copies by {name}: the calibrated bound is from {len(held_out):,} held-out pictures; "
                f"{by_chance:.1%} of others fall below it by chance"
            )
            control = self._ratio(name, self.real.reference, candidates)
        self.copy_spaces.append(CopySpace(name, candidates, bounds, control))

    def _ratio(self, space: str, pictures: PictureSet, candidates: np.ndarray) -> np.ndarray:
        if space == "pixels":
            vectors = copies.pixel_vectors(pictures.images, pictures.rows)
        else:
            assert self.distances is not None
            vectors, _ = self.distances.of(pictures)
        return copies.neighbours(self.variants(space, vectors), candidates, self.kept).ratio

    def variants(self, space: str, vectors: np.ndarray) -> list[np.ndarray]:
        """Return the vectors and, in pixel space, their mirror images if training used those."""
        if space != "pixels" or not self.real.mirrored:
            return [vectors]
        return [vectors, copies.mirrored(vectors, self.real.reference.images.shape[-1])]
