"""The networks that pictures are judged by."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from flowergen.errors import UserError
from flowergen.evaluation.classifier import cached_classifier
from flowergen.evaluation.extractors import Extractor, classifier_extractor, load_extractor
from flowergen.evaluation.pictures import RealPictures
from flowergen.modules.outside_weights import MissingWeights


@dataclass(frozen=True)
class Judges:
    """What they are, and where their work on real pictures is kept.

    Attributes:
        name: of the extractor, as it was asked for.
        extractor: of the features in which sets are compared; None where its weights are missing.
        classifier: of classes, trained on the real pictures; None without labels.
        accuracy: of the classifier on held-out pictures that it did not see; None where there are none.
        cache_dir: for the features of real pictures.
        missing: what cannot be judged, and why.
    """

    name: str
    extractor: Extractor | None
    classifier: Extractor | None
    accuracy: float | None
    cache_dir: Path
    missing: list[str] = field(default_factory=list)


def load_judges(
    name: str, real: RealPictures, data_name: str, cache_dir: Path, weights_dir: str, device: torch.device
) -> Judges:
    """The extractor, which may have to be downloaded, and the classifier, which may have to be trained.

    Args:
        name: of the extractor: ``inception``, ``torchvision:NAME``, ``classifier`` or a file.
        real: the pictures that the classifier learns from.
        data_name: of them, for a folder's name and messages.
        cache_dir: of the classifier, and of features.
        weights_dir: of networks from outside.
        device: to compute on.

    Raises:
        UserError: the extractor does not exist or is damaged, or is the classifier and there are no labels.
    """
    missing, extractor = list[str](), None
    if name != "classifier":
        try:
            extractor = load_extractor(name, weights_dir, device)
        except MissingWeights as error:
            missing.append(f"FID, KID, Inception Score, precision, recall, rFID and copies in features: {error}")
    classifier, accuracy = _classifier(real, data_name, cache_dir, device)
    if name == "classifier":
        if classifier is None:
            raise UserError("extractor=classifier learns from labelled training pictures, and there are none: use inception")
        extractor = classifier
    if classifier is None:
        missing.append("class consistency: the training pictures have no classes, or nobody said which they are")
    return Judges(name, extractor, classifier, accuracy, cache_dir, missing)


def _classifier(
    real: RealPictures, data_name: str, cache_dir: Path, device: torch.device
) -> tuple[Extractor | None, float | None]:
    train = real.train
    if train is None or not len(real.class_names) or not (train.labels[train.rows] >= 0).any():
        return None, None
    rows = real.validation.rows if real.validation else np.zeros(0, dtype=np.int64)
    collection, num_classes = (train.images, train.labels, train.rows, rows), len(real.class_names)
    trained = cached_classifier(data_name, *collection, num_classes, f"{real.identity}/{real.pixels}", cache_dir, device)
    return classifier_extractor(trained, device), None if math.isnan(trained.accuracy) else trained.accuracy
