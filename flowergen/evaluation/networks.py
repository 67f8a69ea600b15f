"""Networks used for evaluation."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from flowergen.evaluation.extractors import Extractor, chosen, efficientnet_extractor, inception_path, load_extractor
from flowergen.evaluation.pictures import RealPictures
from flowergen.evaluation.probe import LinearProbe, cached_probe
from flowergen.modules.pretrained_weights import MissingWeights

NETWORKS = {"efficientnet": "EfficientNet-Lite1", "inception": "Inception-v3", "torchvision:vgg16": "VGG-16"}


@dataclass(frozen=True)
class EvaluationNetworks:
    """Evaluation networks and the cache of their features.

    Attributes:
        name: name of the extractor, with ``auto`` resolved.
        extractor: feature extractor for comparing sets; None if its weights are missing.
        probe: linear probe of the classes, fitted to the real pictures; None without labels or if its weights are missing.
        cache_dir: cache folder for the features of real pictures.
        missing: metrics that cannot be measured, and why.
        notes: notes on the networks for the metric card.
    """

    name: str
    extractor: Extractor | None
    probe: LinearProbe | None
    cache_dir: Path
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_on_training(self, trained_with: str | None) -> list[str]:
        """Report whether the networks that measure a model were used in its training.

        Args:
            trained_with: see ``ImageModel.features_trained_with``.

        Returns:
            A line for the card; empty if no pretrained network was used in training or none measures the model.
        """
        extractors = [self.extractor, self.probe.extractor if self.probe else None]
        names = list(dict.fromkeys(NETWORKS.get(one.name, one.name) for one in extractors if one is not None))
        if trained_with is None or not names:
            return []
        same = [name for name in names if name in trained_with]
        if same:
            return [
                f"warning: the model was trained with {trained_with}'s features and is measured in {' and '.join(same)}'s, "
                "so the results look better than the pictures are: choose another extractor="
            ]
        return [f"trained with {trained_with}'s features, measured in {' and '.join(names)}'s"]


def load_evaluation_networks(
    name: str, real: RealPictures, data_name: str, cache_dir: Path, weights_dir: str, device: torch.device
) -> EvaluationNetworks:
    """Load the extractor, downloading it if necessary, and the linear probe, fitting it if necessary.

    Args:
        name: name of the extractor: ``auto``, ``inception``, ``efficientnet``, ``torchvision:NAME`` or a file.
        real: the real pictures that the probe is fitted to.
        data_name: name of their data set, for the folder name and messages.
        cache_dir: cache folder for the probe and the features.
        weights_dir: directory of pretrained weights.
        device: device to compute on.

    Raises:
        UserError: the extractor does not exist or is damaged, or the disk is full.
    """
    missing, notes, extractor = list[str](), list[str](), None
    if name == "auto":
        name, path = chosen(name, weights_dir), inception_path(weights_dir)
        notes.append(
            f"extractor=auto: inception, as {path} exists"
            if name == "inception"
            else f"extractor=auto: efficientnet, as {path} does not exist; extractor=inception downloads it"
        )
    try:
        extractor = load_extractor(name, weights_dir, device)
    except MissingWeights as error:
        missing.append(f"distances, scores, precision, recall and copies in features: {error}")
    probe, train = None, real.train
    if train is None or not len(real.class_names) or not (train.labels[train.rows] >= 0).any():
        missing.append("class consistency: the training pictures have no classes, or are unknown")
    else:
        try:
            own = extractor if name == "efficientnet" and extractor else efficientnet_extractor("the linear probe", device)
            probe = cached_probe(data_name, real, train, own, cache_dir)
        except MissingWeights as error:
            missing.append(f"class consistency: {error}")
    return EvaluationNetworks(name, extractor, probe, cache_dir, missing, notes)
