"""EvaluationNetworks that cost nothing, and sets of pictures to be evaluated."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.evaluation.extractors import Extractor
from flowergen.evaluation.networks import EvaluationNetworks
from flowergen.evaluation.pictures import PictureSet, RealPictures, real_pictures_of
from flowergen.evaluation.probe import LinearProbe
from flowergen.evaluation.reference import PreparedReference
from flowergen.picture_shape import PictureShape


class Counting:
    """Features: means of the 4 x 4 parts of each channel; logits: those of the channels. Counts the pictures it has seen."""

    def __init__(self, fails_after: int | None = None):
        self.seen, self.fails_after = 0, fails_after

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fails_after is not None and self.seen >= self.fails_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return F.adaptive_avg_pool2d(x.float() / 255, 4).flatten(1), 10 * x.float().mean((2, 3)) / 255


def extractor(counting: Counting | None = None, name: str = "fake") -> Extractor:
    """With 48 features and 3 logits."""
    return Extractor(name, "weights", "none", 48, 3, counting or Counting())


def probe(of: Extractor) -> LinearProbe:
    """Takes a picture for the class of its brightest channel, by the features of ``Counting``."""
    return LinearProbe(of, np.kron(np.eye(3), np.ones(16)), np.zeros(3), np.arange(3))


def networks(cache_dir: Path, features: Extractor | None = None, probe: LinearProbe | None = None) -> EvaluationNetworks:
    """With or without."""
    return EvaluationNetworks("fake", features, probe, cache_dir)


def prepared_of(
    data: ImageDataModule, cache_dir: Path, probe: LinearProbe | None = None, mirrored: bool = False
) -> PreparedReference:
    """The pictures of a data set."""
    real = replace(real_pictures_of(data, None), mirrored=mirrored)
    return PreparedReference(real, networks(cache_dir, extractor(), probe), [])


def a_set(images: np.ndarray, labels: np.ndarray | None = None, name: str = "some", key: str = "key") -> PictureSet:
    """All of these."""
    labels = np.full(len(images), -1) if labels is None else labels
    return PictureSet(name, images, labels, np.arange(len(images)), key)


def real_of(
    reference: PictureSet, train: PictureSet | None = None, calibration: PictureSet | None = None, mirrored: bool = False
) -> RealPictures:
    """Three classes."""
    return RealPictures("identity", reference, train, calibration, mirrored, ("a", "b", "c"))


class Pictures:
    """Generated ones, which stop coming after so many.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,).
        batch_size: at a time.
        stops_after: raises KeyboardInterrupt when so many have come.
    """

    description = "pictures of a test"

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None = None, batch_size: int = 7, stops_after: int | None = None
    ):
        self.images, self.batch_size, self.stops_after = np.array(images), batch_size, stops_after
        self.labels = torch.from_numpy(np.full(len(images), -1) if labels is None else labels)
        self.picture_shape = PictureShape(*images.shape[1:])
        self.began_at: list[int] = []

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """See ``Generated``."""
        self.began_at.append(first)
        for start in range(first, len(self.images), self.batch_size):
            if self.stops_after is not None and start >= self.stops_after:
                raise KeyboardInterrupt
            yield self.images[start : start + self.batch_size]

    def at(self, index: Sequence[int]) -> np.ndarray:
        """See ``Generated``."""
        return self.images[list(index)]
