import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowergen.data import progress_bar
from flowergen.data.batch import Batch
from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.errors import UserError
from flowergen.evaluation.measure import (
    WORST_PAIRS,
    floor_subsets,
    measure_denoising,
    measure_reconstructions,
    measure_samples,
)
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.pictures import PicturesFromFiles, real_pictures_in, real_pictures_of, repeated
from flowergen.evaluation.reference import PreparedReference
from flowergen.evaluation.rows import Rows
from flowergen.nn.posterior import Posterior
from flowergen.picture_shape import PictureShape
from tests.conftest import save_grey
from tests.evaluation.fakes import Counting, Pictures, a_set, extractor, networks, prepared_of, probe, real_of
from tests.tiny_models import diffusion, drawn

COPIES = [f"copies_{space}_{bound}" for space in ("pixels", "features") for bound in ("third", "calibrated")]


@pytest.fixture(scope="module")
def data(cache_dir: Path) -> ProceduralDataModule:
    """400 flowers of four classes: 320, 40 and 40."""
    return drawn(cache_dir, num_images=400, num_classes=4, image_size=32)


@pytest.fixture(scope="module")
def side(data: ProceduralDataModule, tmp_path_factory: pytest.TempPathFactory) -> PreparedReference:
    return prepared_of(data, tmp_path_factory.mktemp("features"))


def of(data: ProceduralDataModule, subset: str) -> np.ndarray:
    return np.asarray(data.pictures.images[data.rows[subset]])


def measured_of(generated: Any, side: PreparedReference, num: int, repeats: int, work: Path) -> Measured:
    measured = Measured()
    measure_samples(generated, side, num, repeats, work, measured)
    return measured


def brightest(images: np.ndarray) -> np.ndarray:
    return images.mean((2, 3)).argmax(1)


# -- samples


def test_exactly_the_reference_pictures_are_at_no_distance(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path
) -> None:
    """FID 0, precision and recall 1; KID below 0 by the pairs of a picture with itself, which it leaves out."""
    reference = side.real.reference
    num = len(reference)
    results = measured_of(PicturesFromFiles(reference, data.class_names, data.class_names, 16), side, num, 1, tmp_path).results
    assert results["fid"]["samples"] == [pytest.approx(0, abs=1e-9)]
    assert results["precision"]["samples"] == results["recall"]["samples"] == [1]
    features = side.distances.reference.astype(np.float64)  # type: ignore[union-attr]
    kernel = (features @ features.T / 48 + 1) ** 3
    within = (kernel.sum() - kernel.trace()) / (num * (num - 1))
    assert results["kid"]["samples"] == [pytest.approx(2 * within - 2 * kernel.mean(), rel=1e-4)]
    assert results["kid"]["samples"][0] < 0
    assert all(results[name]["samples"] == results[name]["held_out"] for name in COPIES), "the control, measured as samples"


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_generator_that_copies_is_caught_and_held_out_pictures_are_not(
    mirrored: bool, data: ProceduralDataModule, tmp_path: Path
) -> None:
    """By both bounds; mirrored copies in pixels. The first repeat is half copies, the second new flowers."""
    side = prepared_of(data, tmp_path / "features", mirrored=mirrored)
    copied, new = of(data, "train")[5:45], of(data, "test")
    copied = copied[..., ::-1] if mirrored else copied
    mixed = np.concatenate((copied[:20], new[:20], new))
    results = measured_of(Pictures(mixed), side, 40, 2, tmp_path / "work").results
    for name in ("copies_pixels_third", "copies_pixels_calibrated", *(() if mirrored else COPIES[2:])):
        first, second = results[name]["samples"]
        assert first == pytest.approx(0.5, abs=0.051)
        assert second <= 0.05
        assert results[name]["held_out"] == [second]
    for space in side.copy_spaces:
        assert results[f"copy_bound_{space.name}"] == {"held_out": [space.bounds["calibrated"]]}


def test_the_worst_pairs_are_samples_beside_the_training_pictures_that_they_copy(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path
) -> None:
    train, new = of(data, "train"), of(data, "test")
    images = np.concatenate((new[:15], train[100:104], new[15:30]))
    pairs = measured_of(Pictures(images), side, 34, 1, tmp_path).pairs
    assert [found.space for found in pairs] == ["pixels", "features"]
    for found in pairs:
        assert len(found.samples) == len(found.nearest) == len(found.ratio) == WORST_PAIRS
        np.testing.assert_array_equal(found.samples[:4], train[100:104])
        np.testing.assert_array_equal(found.nearest[:4], train[100:104])
        assert (np.diff(found.ratio) >= 0).all()
        assert (found.ratio[:4] == 0).all()
        assert (found.ratio[4:] > 0).all()


def test_repeats_are_disjoint_sets_each_measured_apart(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path
) -> None:
    images = of(data, "train")[:60]
    results = measured_of(Pictures(images), side, 20, 3, tmp_path / "all").results
    for repeat in range(3):
        alone = Pictures(images[20 * repeat : 20 * repeat + 20])
        one = measured_of(alone, side, 20, 1, tmp_path / str(repeat)).results
        for name, columns in one.items():
            if "samples" in columns:
                assert results[name]["samples"][repeat] == pytest.approx(columns["samples"][0], rel=1e-6), name
    assert len(set(results["fid"]["samples"])) == 3


def test_the_floor_is_measured_on_as_many_training_pictures(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path
) -> None:
    results = measured_of(Pictures(of(data, "test")), side, 20, 2, tmp_path).results
    assert side.distances is not None
    expected = Measured()
    for subset in floor_subsets(side.real, 20, 2, False):
        side.distances.add(expected, "train", *side.distances.of(subset))
    for name, columns in expected.results.items():
        assert results[name]["train"] == columns["train"]
        assert len(columns["train"]) == 2


def test_class_accuracy_is_a_count(data: ProceduralDataModule, tmp_path: Path) -> None:
    """Of each repeat, and of the held-out pictures as they are labelled."""
    side = prepared_of(data, tmp_path / "features", probe(extractor(Counting(), "of the probe")))
    images, labels = of(data, "train")[:30], np.arange(30) // 4 % 3
    results = measured_of(Pictures(images, labels), side, 15, 2, tmp_path / "work").results["class_accuracy"]
    right = brightest(images) == labels
    assert results["samples"] == [pytest.approx(right[:15].mean()), pytest.approx(right[15:].mean())]
    assert 0 < right[:15].mean() != right[15:].mean()
    held_out = brightest(of(data, "test")) == data.pictures.labels[data.rows["test"]]
    assert results["held_out"] == [pytest.approx(held_out.mean())]


def test_samples_of_no_class_and_unlabelled_pictures_are_not_counted(data: ProceduralDataModule, tmp_path: Path) -> None:
    side = prepared_of(data, tmp_path / "features", probe(extractor(Counting(), "of the probe")))
    labels = np.array([0] * 9 + [-1])
    images = of(data, "train")[:10]
    assert "samples" not in measured_of(Pictures(images, labels), side, 10, 1, tmp_path / "one").results["class_accuracy"]
    reference = side.real.reference
    partly = replace(reference, labels=np.where(np.arange(400) == reference.rows[0], -1, reference.labels))
    side = PreparedReference(replace(side.real, reference=partly), side.networks, [])
    known = partly.rows[1:]
    expected = (brightest(np.asarray(partly.images[known])) == partly.labels[known]).mean()
    found = measured_of(Pictures(images), side, 10, 1, tmp_path / "two").results["class_accuracy"]
    assert found == {"held_out": [pytest.approx(expected)]}


def test_a_probe_of_the_extractors_features_sees_each_picture_once(data: ProceduralDataModule, tmp_path: Path) -> None:
    counting = Counting()
    both = extractor(counting)
    real = real_pictures_of(data, None)
    side = PreparedReference(real, networks(tmp_path / "features", both, probe(both)), [])
    before = counting.seen
    images = of(data, "train")[:10]
    results = measured_of(Pictures(images, brightest(images)), side, 10, 1, tmp_path / "work").results
    assert counting.seen == before + 10
    assert results["class_accuracy"]["samples"] == [1]


def test_without_an_extractor_and_a_probe_copies_are_looked_for_in_pixels(data: ProceduralDataModule, tmp_path: Path) -> None:
    side = PreparedReference(real_pictures_of(data, None), networks(tmp_path), [])
    results = measured_of(Pictures(of(data, "train")[:10]), side, 10, 1, tmp_path / "work").results
    assert set(results) == {"copies_pixels_third", "copies_pixels_calibrated", "copy_bound_pixels"}
    assert results["copies_pixels_third"]["samples"] == [1]


def test_where_nothing_is_held_out_there_is_the_usual_bound_alone(tmp_path: Path, cache_dir: Path) -> None:
    data = drawn(cache_dir, split="all")
    side = PreparedReference(
        real_pictures_of(data, None), networks(tmp_path, extractor(), probe(extractor(Counting(), "of the probe"))), []
    )
    images = np.asarray(data.pictures.images[:8])
    results = measured_of(Pictures(images, brightest(images)), side, 8, 1, tmp_path / "work").results
    assert set(results["class_accuracy"]) == {"samples", "train"}
    assert results["copies_pixels_third"] == {"samples": [1]}
    assert "copies_pixels_calibrated" not in results
    assert "copy_bound_pixels" not in results, "nothing was calibrated"
    assert set(results["fid"]) == {"samples"}, "and no floor: it would be the reference"


# -- interrupted


@pytest.mark.parametrize("stopped_by", ["the generator", "the extractor", "a torn row"])
def test_an_interrupted_measurement_goes_on_at_that_picture_and_ends_bit_equal(
    stopped_by: str, data: ProceduralDataModule, tmp_path: Path
) -> None:
    images, labels = of(data, "train")[:50], data.pictures.labels[data.rows["train"][:50]]
    real = real_pictures_of(data, None)

    def side(counting: Counting) -> PreparedReference:
        return PreparedReference(
            real, networks(tmp_path / "features", extractor(counting), probe(extractor(Counting(), "of the probe"))), []
        )

    whole = measured_of(Pictures(images, labels), side(Counting()), 25, 2, tmp_path / "whole")
    first = Pictures(images, labels, stops_after=28 if stopped_by == "the generator" else None)
    counting = Counting(fails_after=28) if stopped_by == "the extractor" else Counting()
    if stopped_by == "a torn row":
        measured_of(first, side(counting), 25, 2, tmp_path / "work")
        for name, keep in (("logits", 28 * 12 + 5), ("class", 28 * 8 + 1)):
            path = tmp_path / "work" / "samples" / f"{name}.rows"
            path.write_bytes(path.read_bytes()[:keep])
    else:
        with pytest.raises(KeyboardInterrupt):
            measured_of(first, side(counting), 25, 2, tmp_path / "work")
    again, counting = Pictures(images, labels), Counting()
    rest = measured_of(again, side(counting), 25, 2, tmp_path / "work")
    assert again.began_at == [28]
    assert counting.seen == 22
    assert rest.results == whole.results
    for found, expected in zip(rest.pairs, whole.pairs, strict=True):
        for part, wanted in zip(vars(found).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(part, wanted)
    for name in ("pixels", "features", "logits", "class"):
        files = [tmp_path / folder / "samples" / f"{name}.rows" for folder in ("whole", "work")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_was_measured_is_not_drawn_again(side: PreparedReference, data: ProceduralDataModule, tmp_path: Path) -> None:
    images = of(data, "train")[:20]
    first = measured_of(Pictures(images), side, 20, 1, tmp_path)
    assert measured_of(Pictures(images, stops_after=0), side, 20, 1, tmp_path / ".").results == first.results


@pytest.mark.parametrize(("shape", "num_values"), [((3, 70, 70), 3 * 64 * 64), ((1, 48, 70), 48 * 64), ((3, 20, 12), 720)])
def test_pixels_are_kept_at_64_px_a_side_at_most(shape: tuple[int, int, int], num_values: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    side = PreparedReference(real_of(a_set(images, key="r"), a_set(images, key="t")), networks(tmp_path), [])
    results = measured_of(Pictures(images), side, 12, 1, tmp_path / "work").results
    assert results["copies_pixels_third"]["samples"] == [1]
    assert (tmp_path / "work" / "samples" / "pixels.rows").stat().st_size == 12 * num_values


def test_mirrored_copies_of_grey_pictures_that_are_not_square_are_found(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 48, 70), dtype=np.uint8)
    real = real_of(a_set(images, key="r"), a_set(images, key="t"), mirrored=True)
    side = PreparedReference(real, networks(tmp_path), [])
    results = measured_of(Pictures(images[..., ::-1]), side, 12, 1, tmp_path / "work").results
    assert results["copies_pixels_third"]["samples"] == [1]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, generated = Rows.append, Pictures(of(data, "train")[:20])

    def full(self: Rows, **arrays: Any) -> None:
        if self.num >= 7:
            raise OSError(28, "No space left on device")
        append(self, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "append", full)
        with pytest.raises(UserError, match=r"cannot be written to \(No space left.*continues where it stopped"):
            measured_of(generated, side, 20, 1, tmp_path)
    measured_of(generated, side, 20, 1, tmp_path)
    assert generated.began_at == [0, 7]


# -- the floor


def test_floors_are_sets_of_training_pictures_with_the_classes_of_the_reference(data: ProceduralDataModule) -> None:
    """As many of each class, none twice, other ones in each repeat, the same in each call."""
    real = real_pictures_of(data, None)
    wanted = np.array([17, 3, 0, 6])  # of each class
    labels, rows = data.pictures.labels, data.rows["test"]
    chosen = np.concatenate([np.resize(rows[labels[rows] == label], num) for label, num in enumerate(wanted)])
    real = replace(real, reference=replace(real.reference, rows=chosen))
    subsets = floor_subsets(real, len(chosen), 3, True)
    assert len(subsets) == 3
    for subset in subsets:
        assert np.bincount(labels[subset.rows], minlength=4).tolist() == wanted.tolist()
        assert len(set(subset.rows)) == len(chosen)
        assert set(subset.rows) <= set(data.rows["train"])
    assert len({tuple(subset.rows) for subset in subsets}) == 3
    for subset, again in zip(subsets, floor_subsets(real, len(chosen), 3, True), strict=True):
        np.testing.assert_array_equal(subset.rows, again.rows)
    np.testing.assert_array_equal(floor_subsets(real, len(chosen), 1, True)[0].rows, subsets[0].rows)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("num", [1, 10, 80, 319, 320, 1000])
def test_floors_have_as_many_pictures_as_asked_for_while_there_are_as_many(
    num: int, by_class: bool, data: ProceduralDataModule
) -> None:
    """Where there are not, one set of all of them, as others would be the same."""
    real = real_pictures_of(data, None)
    subsets = floor_subsets(real, num, 2, by_class)
    assert len(subsets) == (2 if num < 320 else 1)
    for subset in subsets:
        assert len(subset) == len(set(subset.rows)) == min(num, 320)
    if num >= 320:
        assert real.train is not None
        np.testing.assert_array_equal(subsets[0].rows, real.train.rows)


def test_floors_of_samples_without_classes_are_drawn_without_regard_to_them(data: ProceduralDataModule) -> None:
    """Not with the reference's, which may be of one class alone; others in each repeat, the same in each call."""
    real, labels = real_pictures_of(data, None), data.pictures.labels
    rows = data.rows["test"]
    real = replace(real, reference=replace(real.reference, rows=rows[labels[rows] == 0]))
    subsets, again = (floor_subsets(real, 60, 2, False) for _ in range(2))
    of_train = np.bincount(labels[data.rows["train"]], minlength=4) / 320
    for subset, same in zip(subsets, again, strict=True):
        found = np.bincount(labels[subset.rows], minlength=4)
        np.testing.assert_allclose(found / 60, of_train, atol=4 * 0.5 / 60**0.5)
        assert (found > 3).all()
        assert set(subset.rows) <= set(data.rows["train"])
        np.testing.assert_array_equal(subset.rows, same.rows)
    assert set(subsets[0].rows) != set(subsets[1].rows)
    of_class = floor_subsets(real, 60, 1, True)[0]
    assert (labels[of_class.rows] == 0).sum() == min(60, (labels[data.rows["train"]] == 0).sum())


def test_the_floors_classes_are_those_of_the_samples(data: ProceduralDataModule) -> None:
    """A reference of 40 for 60 samples: one and a half rounds of it, the half spread over all classes."""
    real, labels = real_pictures_of(data, None), data.pictures.labels
    wanted = np.bincount(repeated(labels[real.reference.rows], 60), minlength=4)
    (subset,) = floor_subsets(real, 60, 1, True)
    assert np.bincount(labels[subset.rows], minlength=4).tolist() == wanted.tolist()


@pytest.mark.parametrize("labelled", [False, True])
def test_samples_are_held_against_a_floor_of_their_own_classes_or_of_any(
    labelled: bool, data: ProceduralDataModule, tmp_path: Path
) -> None:
    """A reference of one class: the floor is of that one if the samples are, else of all."""
    real, labels = real_pictures_of(data, None), data.pictures.labels
    rows = data.rows["test"]
    real = replace(real, reference=replace(real.reference, rows=rows[labels[rows] == 0]))
    side = PreparedReference(real, networks(tmp_path / "features", extractor()), [])
    generated = Pictures(of(data, "test")[:20], np.zeros(20, np.int64) if labelled else None)
    results = measured_of(generated, side, 20, 1, tmp_path / "work").results
    (subset,) = floor_subsets(real, 20, 1, labelled)
    assert side.distances is not None
    expected = Measured()
    side.distances.add(expected, "train", *side.distances.of(subset))
    assert results["fid"]["train"] == expected.results["fid"]["train"]


def test_where_the_floor_has_fewer_pictures_as_many_samples_are_measured_too(
    data: ProceduralDataModule, tmp_path: Path
) -> None:
    """The first ones of each repeat: a distance of fewer pictures is larger, and only as many can be compared."""
    real = real_pictures_of(data, None)
    assert real.train is not None
    real = replace(real, train=real.train.subset(np.arange(30)))
    side = PreparedReference(real, networks(tmp_path / "features", extractor()), [])
    images = of(data, "train")[40:120]
    results = measured_of(Pictures(images), side, 40, 2, tmp_path / "work").results
    assert side.distances is not None
    expected = Measured()
    for first in (0, 40):
        features, logits = Counting()(torch.from_numpy(images[first : first + 30]))
        side.distances.add(expected, "samples_as_floor", features.numpy(), logits.numpy())
    side.distances.add(expected, "train", *side.distances.of(real.train))
    for name in ("fid", "kid", "precision", "recall", "inception_score"):
        assert set(results[name]) == {"samples", "samples_as_floor", "train"}
        assert results[name]["samples_as_floor"] == pytest.approx(expected.results[name]["samples_as_floor"], rel=1e-5)
        assert results[name]["train"] == expected.results[name]["train"]
        assert len(results[name]["samples"]) == 2
    assert results["fid"]["samples_as_floor"][0] != results["fid"]["samples_as_floor"][1]
    for num in (30, 20):
        generated = Pictures(images[:num])
        found = measured_of(generated, side, num, 1, tmp_path / str(num)).results
        assert set(found["fid"]) == {"samples", "train"}, "as many already"


def test_a_class_with_too_few_training_pictures_is_filled_up_with_others() -> None:
    images = np.zeros((20, 3, 4, 4), np.uint8)
    train = a_set(images, np.array([0] * 2 + [1] * 18), "train", "t")
    reference = a_set(images, np.array([0] * 10 + [1] * 10), "reference", "r")
    (subset,) = floor_subsets(real_of(reference, train), 12, 1, True)
    assert np.bincount(train.labels[subset.rows]).tolist() == [2, 10]
    unlabelled = replace(reference, labels=np.full(20, -1))
    (subset,) = floor_subsets(real_of(unlabelled, train), 12, 1, True)
    assert len(set(subset.rows)) == 12


def test_there_is_no_floor_where_the_reference_was_trained_on_or_nobody_knows(cache_dir: Path) -> None:
    data = drawn(cache_dir, split="all")
    for num, by_class in ((4, True), (4, False), (99, True)):
        assert floor_subsets(real_pictures_of(data, None), num, 2, by_class) == []
        assert floor_subsets(real_pictures_of(data, 7), num, 2, by_class) == []
        assert floor_subsets(real_of(a_set(np.zeros((4, 3, 4, 4), np.uint8))), num, 2, by_class) == []


def test_folders_of_one_name_in_two_places_have_a_floor(tmp_path: Path, cache_dir: Path) -> None:
    for place, first in (("reference", 0), ("train", 10)):
        for number in range(8):
            save_grey(tmp_path / place / "flowers" / f"{number}.png", first + number, (8, 8))
    real = real_pictures_in(
        str(tmp_path / "reference" / "flowers"), str(tmp_path / "train" / "flowers"), PictureShape.of(8), cache_dir
    )
    assert real.train is not None
    assert real.train.name == real.reference.name
    (subset,) = floor_subsets(real, 3, 1, True)
    assert len(subset) == 3


# -- an autoencoder, and a diffusion model


class Copier:
    """Gives pictures back as they are, or darker."""

    device = torch.device("cpu")

    def __init__(self, image_size: int, light: float = 1.0):
        self.picture_shape, self.light, self.num_encoded = PictureShape.of(image_size), light, 0

    def encode(self, x: Tensor) -> Posterior:
        self.num_encoded += len(x)
        return Posterior(x, torch.zeros_like(x))

    def decode(self, z: Tensor) -> Tensor:
        return z * self.light


def test_perfect_reconstructions_are_at_no_distance_and_as_good_as_training_pictures(
    side: PreparedReference, data: ProceduralDataModule, tmp_path: Path
) -> None:
    measured = Measured()
    floors = floor_subsets(side.real, 20, 2, False)
    measure_reconstructions(Copier(32), side, floors, tmp_path, measured)  # type: ignore[arg-type]
    assert measured.results["rfid"] == {"reference": [pytest.approx(0, abs=1e-9)]}
    floor = measured_of(Pictures(of(data, "test")[:40]), side, 20, 2, tmp_path / "samples").results
    for name in ("fid", "kid", "precision", "recall", "inception_score"):
        assert measured.results[name] == {"autoencoder": [pytest.approx(value) for value in floor[name]["train"]]}
    dark = Measured()
    measure_reconstructions(Copier(32, 0.5), side, floors, tmp_path / "dark", dark)  # type: ignore[arg-type]
    assert dark.results["rfid"]["reference"][0] > 0.01


def test_interrupted_reconstructions_are_gone_on_with(
    side: PreparedReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowergen.evaluation.reconstruction.batch_of", lambda size: 8)
    whole, parts, floors = Measured(), Measured(), floor_subsets(side.real, 20, 1, True)
    measure_reconstructions(Copier(32), side, floors, tmp_path / "whole", whole)  # type: ignore[arg-type]
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "reconstructions_1")
    cut = tmp_path / "parts" / "reconstructions_0" / "logits.rows"
    cut.write_bytes(cut.read_bytes()[: 16 * 12 + 2])
    model = Copier(32)
    measure_reconstructions(model, side, floors, tmp_path / "parts", parts)  # type: ignore[arg-type]
    assert parts.results == whole.results
    assert model.num_encoded == (40 - 16) + 20


def test_the_denoising_loss_is_the_models_own_on_as_many_held_out_and_training_pictures(cache_dir: Path) -> None:
    data = drawn(cache_dir, num_images=120)
    model, real = diffusion(), real_pictures_of(data, None)
    measured = Measured()
    measure_denoising(model, real, 5, measured)
    rows = data.rows["test"]
    x, label = torch.from_numpy(data.pictures.images[rows]).float() / 255, torch.from_numpy(data.pictures.labels[rows])
    with torch.inference_mode():
        expected = model.scores(Batch(x, label, torch.from_numpy(rows)), 5)
    assert measured.results["denoising_loss"]["held_out"] == [pytest.approx(expected["loss"].mean().item(), rel=1e-5)]
    assert set(measured.results["denoising_loss"]) == {"held_out", "train"}
    assert {f"denoising_loss_noise_{quarter}" for quarter in (1, 2, 3, 4)} <= set(measured.results)
    measured = Measured()
    measure_denoising(model, replace(real, calibration=None), 5, measured)
    assert set(measured.results["denoising_loss"]) == {"train"}


def test_what_takes_long_reports_its_progress(
    data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    side = prepared_of(data, tmp_path / "features")
    measured_of(Pictures(of(data, "test")), side, 40, 1, tmp_path / "work")
    model = diffusion()
    measure_denoising(model, real_pictures_of(drawn(tmp_path, num_images=120), None), 0, Measured())
    lines = [line.partition(", about")[0] for line in capsys.readouterr().err.splitlines()]
    assert {"comparing: 102,400 of 102,400", "searching: 40 of 40", "denoising: 1 of 1"} <= set(lines)


def test_the_denoising_loss_depends_on_the_seed_that_is_given_and_not_on_the_models_own(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two runs are compared at the same times and noise."""
    model, real = diffusion(), real_pictures_of(drawn(cache_dir, num_images=120), None)

    def losses(seed: int) -> dict[str, Any]:
        measured = Measured()
        measure_denoising(model, real, seed, measured)
        return measured.results

    first, other = losses(0), losses(1)
    monkeypatch.setattr(model, "seed", 1)
    assert losses(0) == first
    for name, columns in first.items():
        for of, value in columns.items():
            assert value != other[name][of], (name, of)
