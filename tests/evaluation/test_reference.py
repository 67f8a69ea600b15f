import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.data.progress_bar import num_pictures, with_progress_bar
from flowergen.errors import UserError
from flowergen.evaluation import copies, features
from flowergen.evaluation.copies import COPY_RATIO
from flowergen.evaluation.extractors import Extractor
from flowergen.evaluation.features import collection_features
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.pictures import PictureSet, real_pictures_of
from flowergen.evaluation.reference import PreparedReference, SetDistances
from flowergen.evaluation.rows import Rows
from flowergen.metrics.set_distances import frechet_distance, gaussian, inception_score, kernel_distance, precision_recall
from tests.evaluation.fakes import Counting, a_set, extractor, networks, real_of
from tests.tiny_models import drawn

NUM = 300  # pictures of a collection: several batches of 64


@pytest.fixture
def collection() -> PictureSet:
    """The rows of one in three."""
    images = np.random.default_rng(0).integers(0, 256, (NUM, 3, 8, 8), dtype=np.uint8)
    return PictureSet("some", images, np.full(NUM, -1), np.arange(0, NUM, 3), "key")


@pytest.fixture(scope="module")
def data(cache_dir: Path) -> ProceduralDataModule:
    return drawn(cache_dir, num_images=400, num_classes=4, image_size=32)


def expected_of(pictures: PictureSet) -> tuple[np.ndarray, np.ndarray]:
    features, logits = Counting()(torch.from_numpy(pictures.images))
    return features.numpy(), logits.numpy()


def check(found: tuple[np.ndarray, np.ndarray], pictures: PictureSet) -> None:
    for part, wanted in zip(found, expected_of(pictures), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, wanted)


# -- features of a collection


def test_features_are_those_of_the_whole_collection_computed_once(collection: PictureSet, tmp_path: Path) -> None:
    """For any subset of it, and for another object of the same extractor."""
    counting = Counting()
    for pictures in (collection, collection.subset(np.array([5])), collection):
        found = collection_features(extractor(counting), pictures, tmp_path / "cache")
        check(found, collection)
        assert counting.seen == NUM
    assert isinstance(found[0], np.memmap)
    other = Counting()
    check(collection_features(extractor(other), collection, tmp_path / "cache"), collection)
    assert other.seen == 0


def test_the_same_network_under_another_name_finds_its_features(collection: PictureSet, tmp_path: Path) -> None:
    """A file that was moved or renamed: its weights' hash says whose they are."""
    collection_features(extractor(), collection, tmp_path)
    counting = Counting()
    check(collection_features(extractor(counting, "other"), collection, tmp_path), collection)
    assert counting.seen == 0


@pytest.mark.parametrize("changed", ["weights", "resize"])
def test_another_extractor_or_collection_has_features_of_its_own(changed: str, collection: PictureSet, tmp_path: Path) -> None:
    collection_features(extractor(), collection, tmp_path)
    counting = Counting()
    collection_features(extractor(counting)._replace(**{changed: "other"}), collection, tmp_path)
    assert counting.seen == NUM
    collection_features(extractor(counting), replace(collection, key="other"), tmp_path)
    assert counting.seen == 2 * NUM


def test_a_killed_process_is_gone_on_with(collection: PictureSet, tmp_path: Path) -> None:
    """At the first picture that is not there; what was left of a row is cut."""
    with pytest.raises(KeyboardInterrupt):
        collection_features(extractor(Counting(fails_after=100)), collection, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    with (folder / "features.rows").open("ab") as file:
        file.write(b"torn")
    counting = Counting()
    check(collection_features(extractor(counting), collection, tmp_path), collection)
    assert counting.seen == NUM - 128  # two batches were whole


def test_two_at_once_make_one_whole_file(collection: PictureSet, tmp_path: Path) -> None:
    """The second waits, and computes nothing."""
    inner = Counting()
    start, found = threading.Barrier(3), []

    def slow(x: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(0.02)
        return inner(x)

    def work() -> None:
        start.wait()
        found.append(collection_features(Extractor("fake", "weights", "none", 48, 3, slow), collection, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inner.seen == NUM
    assert len(found) == 3
    for each in found:
        check(each, collection)


def test_what_is_there_is_read_without_writing(collection: PictureSet, tmp_path: Path) -> None:
    """Not even a lock, which a folder that cannot be written would refuse."""
    collection_features(extractor(), collection, tmp_path)
    for path in tmp_path.glob("*.lock"):
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    collection_features(extractor(), collection, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_extractor_without_logits_has_none(collection: PictureSet, tmp_path: Path) -> None:
    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        return Counting()(x)[0], torch.empty(len(x), 0)

    for _ in range(2):
        found, logits = collection_features(Extractor("fake", "", "", 48, 0, features), collection, tmp_path)
        assert (found.shape, logits.shape) == ((NUM, 48), (NUM, 0))


def test_a_full_disk_is_one_line_that_names_the_option(
    collection: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Rows, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Rows, "append", full)
    with pytest.raises(UserError, match=r"300 pictures cannot be written.*No space left.*paths\.cache_dir="):
        collection_features(extractor(), collection, tmp_path)


# -- distances


@pytest.fixture
def distances(data: ProceduralDataModule, tmp_path: Path) -> SetDistances:
    return SetDistances(extractor(), real_pictures_of(data, None), tmp_path)


def test_distances_are_those_of_the_metrics_to_the_reference(distances: SetDistances, data: ProceduralDataModule) -> None:
    real = real_pictures_of(data, None)
    assert real.train is not None
    features, logits = expected_of(a_set(real.train.at(range(50))))
    reference, _ = expected_of(a_set(real.reference.at(range(len(real.reference)))))
    measured = Measured()
    distances.add(measured, "samples", features, logits)
    precision, recall = precision_recall(reference, features)
    expected = {
        "fid": frechet_distance(gaussian(features), gaussian(reference)),
        "kid": kernel_distance(features, reference),
        "precision": precision,
        "recall": recall,
        "inception_score": inception_score(logits),
    }
    assert precision != recall
    assert measured.results == {name: {"samples": [pytest.approx(value)]} for name, value in expected.items()}
    distances.add(measured, "samples", features, logits)
    assert len(measured.results["fid"]["samples"]) == 2


def test_reconstructions_get_their_own_names_and_extractors_without_logits_no_score(distances: SetDistances) -> None:
    some = np.random.default_rng(0).random((60, 48)).astype(np.float32)
    measured = Measured()
    distances.add(measured, "reference", some, some, "r")
    assert set(measured.results) == {"rfid", "rkid"}
    measured = Measured()
    distances.add(measured, "train", some, np.zeros((60, 0), np.float32))
    assert set(measured.results) == {"fid", "kid", "precision", "recall"}


def test_features_of_real_pictures_are_those_of_the_set(distances: SetDistances, data: ProceduralDataModule) -> None:
    train = real_pictures_of(data, None).train
    assert train is not None
    part = train.subset(np.array([3, 1]))
    check(distances.of(part), a_set(part.at([0, 1])))


# -- copies


def test_both_spaces_are_calibrated_on_validation_pictures_and_controlled_by_test_pictures(
    data: ProceduralDataModule, tmp_path: Path
) -> None:
    real, notes = real_pictures_of(data, None), list[str]()
    assert real.train is not None
    assert real.calibration is not None
    prepared = PreparedReference(replace(real, mirrored=False), networks(tmp_path, extractor()), notes)
    assert [space.name for space in prepared.copy_spaces] == ["pixels", "features"]
    assert notes == [
        f"copies by {space}: the calibrated bound is from 40 held-out pictures; 2.4% of others fall below it by chance"
        for space in ("pixels", "features")
    ], "1 / 41"
    train, val, test = (pictures.at(range(len(pictures))) for pictures in (real.train, real.calibration, real.reference))

    def pooled(images: np.ndarray) -> np.ndarray:
        return expected_of(a_set(images))[0]

    for space, vectors in zip(prepared.copy_spaces, (copies.pixel_vectors, pooled), strict=True):
        found = copies.neighbours([vectors(val)], vectors(train), np.arange(len(train))).ratio
        assert space.bounds == {"third": COPY_RATIO, "calibrated": copies.calibrated_ratio(found)[0]}
        assert space.control is not None
        np.testing.assert_allclose(
            space.control, copies.neighbours([vectors(test)], vectors(train), np.arange(len(train))).ratio
        )
        np.testing.assert_array_equal(space.candidates, vectors(train))


def test_mirror_images_count_in_pixels_alone_and_where_training_has_shown_them(
    data: ProceduralDataModule, tmp_path: Path
) -> None:
    vectors = copies.pixel_vectors(np.asarray(data.pictures.images[:3]))
    for mirrored in (False, True):
        prepared = PreparedReference(replace(real_pictures_of(data, None), mirrored=mirrored), networks(tmp_path), [])
        assert len(prepared.variants("pixels", vectors)) == 1 + mirrored
        assert len(prepared.variants("features", vectors)) == 1
        assert [space.name for space in prepared.copy_spaces] == ["pixels"], "there is no extractor"


def test_near_duplicates_are_taken_out_of_both_spaces_and_counted(data: ProceduralDataModule, tmp_path: Path) -> None:
    images = np.array(data.pictures.images)
    train = a_set(np.concatenate((images[:200], images[:50])), name="train", key="train")
    reference, notes = a_set(images[200:], name="reference", key="reference"), list[str]()
    prepared = PreparedReference(real_of(reference, train), networks(tmp_path, extractor()), notes)
    assert notes == ["50 of 250 training pictures are near-duplicates of others"]
    assert prepared.kept.tolist() == list(range(200))
    assert [len(space.candidates) for space in prepared.copy_spaces] == [200, 200]
    for space in prepared.copy_spaces:  # nothing calibrates
        assert (space.bounds, space.control) == ({"third": COPY_RATIO}, None)


def test_copies_are_not_looked_for_where_nobody_says_what_was_learnt_from(collection: PictureSet, tmp_path: Path) -> None:
    notes: list[str] = []
    prepared = PreparedReference(real_of(collection), networks(tmp_path, extractor()), notes)
    assert prepared.copy_spaces == []
    assert len(notes) == 1
    assert "train=DIR" in notes[0]
    one = collection.subset(np.array([0]))
    assert PreparedReference(real_of(collection, one), networks(tmp_path), []).copy_spaces == [], (
        "one picture has no second nearest"
    )


def test_a_bar_changes_nothing() -> None:
    parts: list[Any] = [np.zeros(3), (np.ones(2), np.ones(2))]
    assert list(with_progress_bar("what", iter(parts), 5, size=num_pictures)) == parts
    assert features.CHUNK_SIZE * 2 == 128  # what the test of a killed process counts on
