"""Linear probe on EfficientNet-Lite1 features that classifies the pictures of a data set."""

import json
import logging
import time
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save
from sklearn.preprocessing import StandardScaler

from flowergen.data.cache import open_or_build, sync
from flowergen.data.progress_bar import with_progress_bar
from flowergen.evaluation.extractors import Extractor
from flowergen.evaluation.features import collection_features
from flowergen.evaluation.pictures import PictureSet, RealPictures

log = logging.getLogger(__name__)

RECIPE_VERSION = 1  # increment it when the fit changes
WEIGHT_DECAY = 0.01  # lambda of the objective: the best of 1, 0.1, 0.01 and 0.003 on validation pictures of Oxford 102 Flowers
MAX_ITERATIONS, TOLERANCE = 300, 1e-4  # of L-BFGS, and for its largest final derivative, as in scikit-learn
MAX_EVALUATIONS = MAX_ITERATIONS * 5 // 4  # of the objective, as is torch's default


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on the features of a frozen network, and its accuracy.

    Attributes:
        extractor: the feature extractor.
        weight: (K', D) float64, for the K' classes that have training pictures.
        bias: (K',) float64.
        labels: (K',) int64 labels of these classes.
        accuracy: on held-out pictures, in [0, 1]; None if there are none.
    """

    extractor: Extractor
    weight: np.ndarray
    bias: np.ndarray
    labels: np.ndarray
    accuracy: float | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return blake2b(b"".join(array.tobytes() for array in (self.weight, self.bias, self.labels)), digest_size=16).hexdigest()

    def classes(self, features: np.ndarray) -> np.ndarray:
        """Return the most probable class, (N,) int64, for (N, D) features."""
        found: np.ndarray = self.labels[(features @ self.weight.T + self.bias).argmax(1)]
        return found


def cached_probe(name: str, real: RealPictures, train: PictureSet, extractor: Extractor, cache_dir: Path) -> LinearProbe:
    """Return the probe of a data set, fitted once for all processes and runs; its weights depend only on the pictures.

    Args:
        name: name of the data set, for the folder name and messages.
        real: the real pictures; those held out for validation give the accuracy.
        train: the pictures to fit on, at least some labelled; unlabelled ones are left out.
        extractor: the feature extractor.
        cache_dir: the folder of all caches.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    held_out = real.validation.rows if real.validation else np.zeros(0, dtype=np.int64)
    train_rows, held_out_rows = (rows[train.labels[rows] >= 0] for rows in (train.rows, held_out))
    pictures = f"{real.identity}/{real.pixels}/{train.images.shape[-1]}/{train_rows.tolist()}/{held_out_rows.tolist()}"
    described = f"{RECIPE_VERSION}/{extractor.weights}/{extractor.resize}/{pictures}"
    key = blake2b(described.encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{name}_probe_{key[:16]}"

    def open_() -> LinearProbe | None:
        if not folder.exists():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_text())
            accuracy = None if meta["accuracy"] is None else float(meta["accuracy"])
            probe = LinearProbe(extractor, **load_file(folder / "weights.safetensors"), accuracy=accuracy)
            if (meta["key"], meta["fingerprint"]) != (key, probe.fingerprint):
                raise ValueError("not the expected probe")
        except Exception as error:  # json and safetensors may raise anything on damaged files
            log.warning("%s is damaged (%s): fitting it again", folder, error)
            return None
        return probe

    def build(temporary: Path) -> None:
        features, _ = collection_features(extractor, train, cache_dir)
        start = time.perf_counter()
        log.info("fitting a linear probe of the classes to %s pictures, once", f"{len(train_rows):,}")
        labels, target = np.unique(train.labels[train_rows], return_inverse=True)
        weight, bias = fit(features[train_rows], target, len(labels))
        probe = LinearProbe(extractor, weight, bias, labels)
        correct = probe.classes(features[held_out_rows]) == train.labels[held_out_rows]
        accuracy = float(correct.mean()) if len(correct) else None
        meta = {"key": key, "fingerprint": probe.fingerprint, "accuracy": accuracy}
        weights = {"weight": weight, "bias": bias, "labels": labels}
        for file_name, content in (("weights.safetensors", save(weights)), ("meta.json", json.dumps(meta).encode())):
            with open(temporary / file_name, "wb") as file:
                file.write(content)
                sync(file)
        accuracy_text = "none" if accuracy is None else f"{accuracy:.1%} of {len(correct):,}"
        log.info("%.0f s; held-out pictures that it classifies correctly: %s", time.perf_counter() - start, accuracy_text)

    num_bytes = 8 * (len(real.class_names) + 1) * (extractor.num_features + 2)
    return open_or_build(folder, open_, build, f"the linear probe of {name}", num_bytes)


def fit(features: np.ndarray, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit multinomial logistic regression by L-BFGS, in float64 on the CPU (Nocedal & Wright 2006, chapter 7).

    Minimises mean cross-entropy + ``WEIGHT_DECAY`` / 2 |W|^2 on features standardised to mean 0 and standard deviation 1; the
    returned weights apply to the original features.

    Args:
        features: (N, D).
        target: (N,) int64 from 0 to K - 1.
        num_classes: K.

    Returns:
        (K, D) and (K,) float64.
    """
    scaler = StandardScaler(copy=False)  # in place: large collections take gigabytes
    x, y = torch.from_numpy(scaler.fit_transform(features.astype(np.float64))), torch.from_numpy(target)
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        max_eval=MAX_EVALUATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    evaluations = with_progress_bar("fitting", count(), MAX_EVALUATIONS)  # usually, fewer are enough

    def closure() -> torch.Tensor:
        next(evaluations)
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + WEIGHT_DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with closing(evaluations):
        optimizer.step(closure)
    scaled = weight.detach().numpy() / scaler.scale_
    return scaled, bias.detach().numpy() - scaled @ scaler.mean_
