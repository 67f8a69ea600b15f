import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.errors import UserError
from flowergen.evaluation.pictures import (
    PictureSet,
    PicturesFromFiles,
    Sampled,
    picture_folder,
    real_pictures_in,
    real_pictures_of,
    repeated,
    to_uint8,
)
from flowergen.evaluation.sampling import LatentSampler
from flowergen.picture_shape import PictureShape
from flowergen.randomness import normal_per_sample
from tests.conftest import save_grey
from tests.tiny_models import SIZE, TinyAutoencoder, drawn


def tens(*numbers: int) -> list[int]:
    return [10 * number for number in numbers]


def a_set(num: int = 10) -> PictureSet:
    """Picture i of the collection is grey level i, of class i mod 3; the even ones are of the set."""
    images = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 3, 4, 4))
    return PictureSet("even ones", images, np.arange(num) % 3, np.arange(0, num, 2), "key")


def levels(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def folder_of(root: Path, *names: str, first: int = 0) -> Path:
    for number, name in enumerate(names, first):
        save_grey(root / name, 10 * number, (8, 8))
    return root


FOUR = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")
EIGHT_PX = PictureShape.of(8)
EIGHT = (*FOUR, "b/5.png", "b/6.png", "b/7.png", "b/8.png")  # half of which are four


# -- sets


def test_pictures_are_found_by_their_position_in_the_set() -> None:
    pictures = a_set()
    assert len(pictures) == 5
    assert levels(pictures.at([0, 3, 1, 1])) == [0, 6, 2, 2]
    assert pictures.at([]).shape == (0, 3, 4, 4)
    assert pictures.at(range(4, 5)).dtype == np.uint8
    part = pictures.subset(np.array([4, 1]))
    assert levels(part.at([0, 1])) == [8, 2]
    assert (part.name, part.key) == (pictures.name, pictures.key)


# -- of a run


def test_test_pictures_are_the_reference_and_validation_pictures_calibrate(cache_dir: Path) -> None:
    data = drawn(cache_dir)
    real = real_pictures_of(data, None)
    assert real.train is not None
    assert real.calibration is not None
    for pictures, subset in ((real.train, "train"), (real.calibration, "val"), (real.reference, "test")):
        np.testing.assert_array_equal(pictures.rows, data.rows[subset])
        np.testing.assert_array_equal(pictures.at([1])[0], data.pictures.images[data.rows[subset][1]])
        assert pictures.key == data.pixels
    assert [real.reference.name, real.train.name, real.calibration.name] == [
        "test pictures",
        "training pictures",
        "validation pictures",
    ]
    assert (real.identity, real.mirrored, real.note) == (data.identity, True, "")
    assert real.class_names == data.class_names
    assert not real_pictures_of(drawn(cache_dir, horizontal_flip=False), None).mirrored


@pytest.mark.parametrize(
    ("num", "expected"), [(4, [0, 3, 7, 11]), (5, [0, 2, 5, 8, 11]), (12, list(range(12))), (99, list(range(12)))]
)
def test_fewer_reference_pictures_are_spread_over_the_test_pictures(num: int, expected: list[int], cache_dir: Path) -> None:
    data = drawn(cache_dir, num_images=120)
    real = real_pictures_of(data, num)
    np.testing.assert_array_equal(real.reference.rows, data.rows["test"][expected])
    assert real.calibration is not None
    assert len(real.calibration) == 12, "calibration is not limited"


@pytest.mark.parametrize("subset", ["test", "val"])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_fewer_than_four_reference_pictures_are_refused(num: int, subset: str, cache_dir: Path) -> None:
    """Precision and recall go to the third neighbour."""
    with pytest.raises(UserError, match=rf"^{num} (test|validation) pictures are too few to evaluate with: give at least 4"):
        real_pictures_of(drawn(cache_dir, num_images=120), num, subset)


def test_in_training_half_of_the_validation_pictures_are_the_reference_and_the_others_calibrate(cache_dir: Path) -> None:
    """Test pictures are not touched; both halves tell the linear probe's accuracy."""
    data = drawn(cache_dir, num_images=120)
    real = real_pictures_of(data, None, "val")
    np.testing.assert_array_equal(real.reference.rows, data.rows["val"][::2])
    assert real.calibration is not None
    np.testing.assert_array_equal(real.calibration.rows, data.rows["val"][1::2])
    assert real.validation is not None
    np.testing.assert_array_equal(real.validation.rows, data.rows["val"])
    assert real.note == ""
    assert len(real_pictures_of(data, 4, "val").reference) == 4


def test_without_test_pictures_validation_pictures_stand_in_and_it_is_said(cache_dir: Path) -> None:
    data = drawn(cache_dir, num_images=120)
    data.rows = data.rows | {"test": np.zeros(0, dtype=np.int64)}
    real = real_pictures_of(data, None)
    np.testing.assert_array_equal(real.reference.rows, data.rows["val"][::2])
    assert "no test pictures" in real.note


@pytest.mark.parametrize("num", [0, 1, 6])
def test_validation_pictures_whose_half_is_too_few_are_refused_in_training(num: int, cache_dir: Path) -> None:
    """Of seven, four are the reference."""
    data = drawn(cache_dir, num_images=120)
    rows = data.rows["val"]
    data.rows = data.rows | {"val": rows[:num]}
    with pytest.raises(UserError, match=r"^[013] validation pictures are too few to evaluate with: give at least 4"):
        real_pictures_of(data, None, "val")
    data.rows = data.rows | {"val": rows[:7]}
    real = real_pictures_of(data, None, "val")
    assert real.calibration is not None
    assert (len(real.reference), len(real.calibration)) == (4, 3)


def test_without_validation_pictures_nothing_calibrates(cache_dir: Path) -> None:
    data = drawn(cache_dir, num_images=120)
    data.rows = data.rows | {"val": np.zeros(0, dtype=np.int64)}
    real = real_pictures_of(data, None)
    assert (len(real.reference), real.calibration, real.validation) == (12, None, None)


def test_the_same_pictures_after_another_transform_are_other_pixels(cache_dir: Path) -> None:
    """Of some of those that were learnt from, or of the reference where nobody says which those are."""
    real = real_pictures_of(drawn(cache_dir), None)
    assert real.train is not None
    assert real.pixels == real_pictures_of(drawn(cache_dir), None).pixels
    assert real.pixels != real_pictures_of(drawn(cache_dir, channels=1), None).pixels
    darker = replace(real.train, images=np.asarray(real.train.images) // 2)
    assert replace(real, train=darker).pixels != real.pixels
    assert replace(real, reference=darker).pixels == real.pixels
    assert replace(real, train=None).pixels != replace(real, train=None, reference=darker).pixels


@pytest.mark.parametrize("subset", ["test", "val"])
def test_where_nothing_is_held_out_the_training_pictures_are_the_reference_and_it_is_said(subset: str, cache_dir: Path) -> None:
    data = drawn(cache_dir, split="all")
    real = real_pictures_of(data, 7, subset)
    assert real.train is not None
    assert (len(real.train), len(real.reference), real.calibration) == (40, 7, None)
    assert set(real.reference.rows) < set(real.train.rows)
    assert real.note == "training-set metric: nothing was held out (data.split=all)"


# -- of folders


def test_a_folder_is_known_by_its_pictures_and_classes_not_by_place_or_time(tmp_path: Path, cache_dir: Path) -> None:
    def identity(folder: Path) -> str:
        return real_pictures_in(str(folder), None, EIGHT_PX, cache_dir).identity

    first = folder_of(tmp_path / "one", *FOUR, "b/5.png")
    before = identity(first)
    other = tmp_path / "deep" / "er"
    shutil.copytree(first, other)
    for path in other.rglob("*.png"):
        os.utime(path, (1, 1))
    assert identity(other) == before
    (other / "b" / "3.png").rename(other / "a" / "3.png")
    assert identity(other) != before, "another label"
    (other / "a" / "3.png").rename(other / "b" / "3.png")
    assert identity(other) == before
    save_grey(other / "b" / "4.png", 99, (8, 8))
    assert identity(other) != before, "another picture"
    (other / "b" / "4.png").unlink()
    assert identity(other) != before, "one less"


def test_a_folder_alone_is_the_reference(tmp_path: Path, cache_dir: Path) -> None:
    real = real_pictures_in(str(folder_of(tmp_path / "flowers", *FOUR)), None, EIGHT_PX, cache_dir)
    assert (real.train, real.calibration, real.validation, real.mirrored, real.note) == (None, None, None, True, "")
    assert levels(real.reference.at(range(4))) == tens(0, 1, 2, 3)
    assert real.reference.labels.tolist() == [0, 0, 1, 1]
    assert list(real.class_names) == ["a", "b"]
    assert real.reference.name == "pictures of flowers"


def test_where_training_pictures_are_known_half_of_the_reference_calibrates(tmp_path: Path, cache_dir: Path) -> None:
    reference = folder_of(tmp_path / "reference", *EIGHT)
    train = folder_of(tmp_path / "train", *FOUR, first=10)
    real = real_pictures_in(str(reference), str(train), EIGHT_PX, cache_dir)
    assert real.train is not None
    assert real.calibration is not None
    assert levels(real.reference.at(range(4))) == tens(0, 2, 4, 6)
    assert levels(real.calibration.at(range(4))) == tens(1, 3, 5, 7)
    assert levels(real.train.at(range(4))) == tens(10, 11, 12, 13)
    assert "every second reference picture" in real.note
    assert real.mirrored, "nobody says whether mirror images were learnt from"
    assert real.validation is None, "they may be of another collection"
    other = folder_of(tmp_path / "other", *FOUR, first=20)
    assert real_pictures_in(str(reference), str(other), EIGHT_PX, cache_dir).identity != real.identity


def test_a_reference_that_was_learnt_from_is_a_training_set_metric(tmp_path: Path, cache_dir: Path) -> None:
    """Also where it is a copy in another place."""
    reference = folder_of(tmp_path / "reference", *FOUR)
    train = tmp_path / "train"
    shutil.copytree(reference, train)
    for folder in (reference, train):
        real = real_pictures_in(str(reference), str(folder), EIGHT_PX, cache_dir)
        assert real.train is real.reference
        assert real.calibration is None
        assert real.note.startswith("training-set metric")
        assert real.mirrored
        assert len(real.reference) == 4


def test_other_class_folders_are_refused_but_none_are_welcome(tmp_path: Path, cache_dir: Path) -> None:
    reference = folder_of(tmp_path / "reference", *EIGHT)
    train = folder_of(tmp_path / "train", "a/1.png", "c/2.png", first=10)
    with pytest.raises(UserError, match=r"reference= and train= have different class folders"):
        real_pictures_in(str(reference), str(train), EIGHT_PX, cache_dir)
    flat = folder_of(tmp_path / "flat", *(f"{number}.png" for number in range(8)), first=10)
    for first, second in ((reference, flat), (flat, reference)):
        assert real_pictures_in(str(first), str(second), EIGHT_PX, cache_dir).calibration is not None


def test_a_reference_whose_half_is_too_few_is_refused_where_the_other_half_would_calibrate(
    tmp_path: Path, cache_dir: Path
) -> None:
    """And where it is all of it."""
    six = folder_of(tmp_path / "six", *EIGHT[:6])
    train = folder_of(tmp_path / "train", "1.png", "2.png", first=10)
    assert len(real_pictures_in(str(six), None, EIGHT_PX, cache_dir).reference) == 6
    with pytest.raises(UserError, match=r"^3 pictures of six are too few to evaluate with: give at least 4"):
        real_pictures_in(str(six), str(train), EIGHT_PX, cache_dir)
    for learnt_from in (None, str(train)):  # two pictures, also as the training set itself
        with pytest.raises(UserError, match=r"^2 pictures of train are too few to evaluate with"):
            real_pictures_in(str(train), learnt_from, EIGHT_PX, cache_dir)


# -- classes of samples


def test_repeated_values_are_whole_rounds_and_a_rest_that_is_spread() -> None:
    """Not a rest from the beginning: of pictures that are sorted by class it would be the first classes alone."""
    labels = np.repeat(np.arange(4), 25)
    for num in (150, 1, 7, 99, 100, 101, 250, 299):
        found = repeated(labels, num)
        frequency = np.bincount(found, minlength=4)
        assert frequency.sum() == len(found) == num
        assert frequency.max() - frequency.min() <= 1
        np.testing.assert_array_equal(found[: num // 100 * 100], np.tile(labels, num // 100))
    rest = repeated(np.arange(100), 150)[100:]
    assert len(set(rest)) == 50
    assert repeated(np.array([3, -1, 2]), 3).tolist() == [3, -1, 2]


@pytest.mark.parametrize("key", ["reference", "train"])
def test_a_folder_without_pictures_is_an_error_that_names_the_key(key: str, tmp_path: Path, cache_dir: Path) -> None:
    full, empty = folder_of(tmp_path / "full", "1.png"), tmp_path / "empty"
    empty.mkdir()
    folders = {"reference": str(full), "train": str(full), key: str(empty)}
    with pytest.raises(UserError, match=f"{key}=.*contains no pictures"):
        real_pictures_in(folders["reference"], folders["train"], EIGHT_PX, cache_dir)


def test_a_file_that_does_not_decode_is_an_error_that_names_it(tmp_path: Path, cache_dir: Path) -> None:
    folder = folder_of(tmp_path / "reference", "1.png")
    (folder / "2.png").write_text("no picture")
    with pytest.raises(UserError, match=r"2\.png"):
        picture_folder(str(folder), "reference", EIGHT_PX, cache_dir)


@pytest.mark.parametrize("shape", [PictureShape.of(12), PictureShape.of((24, 16)), PictureShape.of((24, 16), 1)], ids=str)
def test_pictures_of_a_folder_get_the_shape_that_was_asked_for(shape: PictureShape, tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "wide").mkdir()
    Image.fromarray(np.full((30, 50, 3), 7, np.uint8)).save(tmp_path / "wide" / "1.png")
    pictures, names, _ = picture_folder(str(tmp_path / "wide"), "generated", shape, cache_dir)
    assert (pictures.images.shape, list(names), pictures.labels.tolist()) == ((1, *shape), [], [-1])
    assert (pictures.images == 7).all()


# -- generated ones


def test_given_pictures_are_of_the_class_of_the_same_name() -> None:
    """Names that no real class has, and pictures in no folder, are of no class."""
    pictures = a_set()  # rows 0 2 4 6 8 of classes 0 2 1 0 2
    pictures.labels[4] = -1
    given = PicturesFromFiles(pictures, ["rose", "unknown", "tulip"], ["daisy", "tulip", "rose"], batch_size=2)
    assert given.labels.tolist() == [2, 1, -1, 2, 1]
    assert given.labels.dtype == torch.int64
    assert (given.picture_shape, given.description) == ((3, 4, 4), "even ones")
    flat = PictureSet("flat", pictures.images, np.full(10, -1), np.arange(10), "key")
    assert PicturesFromFiles(flat, [], ["daisy"], 2).labels.tolist() == [-1] * 10
    assert PicturesFromFiles(pictures, ["rose", "unknown", "tulip"], [], 2).labels.tolist() == [-1] * 5


@pytest.mark.parametrize("first", [0, 1, 2, 4, 5])
def test_given_pictures_come_from_a_number_on(first: int) -> None:
    given = PicturesFromFiles(a_set(), ["a", "b", "c"], [], batch_size=2)
    parts = list(given.batches(first))
    assert [level for part in parts for level in levels(part)] == [0, 2, 4, 6, 8][first:]
    assert all(len(part) <= 2 for part in parts)
    assert levels(given.at([4, 0])) == [8, 0]


@pytest.fixture
def sampled() -> Sampled:
    model = TinyAutoencoder().eval()

    def draw(index, label):
        z = normal_per_sample(index, model.latent_shape, seed=3, purpose="test")
        return z + label[:, None, None, None]

    return Sampled(LatentSampler(model, draw, "drawn"), torch.arange(7) % 2, batch_size=3, halve=False)


@pytest.mark.parametrize("first", [0, 2, 3, 6, 7])
def test_sampled_pictures_from_a_number_on_are_the_tail_of_all(first: int, sampled: Sampled) -> None:
    whole = np.concatenate(list(sampled.batches(0)))
    assert (whole.shape, whole.dtype) == ((7, 3, SIZE, SIZE), np.uint8)
    assert len({picture.tobytes() for picture in whole}) == 7
    tail = [*sampled.batches(first)]
    np.testing.assert_array_equal(np.concatenate(tail) if tail else whole[7:], whole[first:])


def test_sampled_pictures_are_found_by_their_number_with_their_own_label(sampled: Sampled) -> None:
    whole = np.concatenate(list(sampled.batches(0)))
    index = [5, 0, 6, 2, 2]
    np.testing.assert_array_equal(sampled.at(index), whole[index])
    assert (sampled.description, sampled.picture_shape) == ("drawn", (3, SIZE, SIZE))


def test_grey_pictures_that_are_not_square_are_given_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 48, 64), dtype=np.uint8)
    given = PicturesFromFiles(PictureSet("grey", images, np.full(5, -1), np.array([4, 1, 0]), "key"), [], [], batch_size=2)
    assert given.picture_shape == (1, 48, 64)
    np.testing.assert_array_equal(np.concatenate(list(given.batches(0))), images[[4, 1, 0]])
    np.testing.assert_array_equal(to_uint8(torch.from_numpy(images) / 255), images)


def test_pictures_become_bytes_as_in_a_file() -> None:
    """Rounded, not cut; what is out of range is at its end."""
    x = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 100.6 / 255, 1.0, 1.7]).view(1, 1, 1, -1)
    assert to_uint8(x).ravel().tolist() == [0, 0, 0, 1, 101, 255, 255]
    levels_of_grey = torch.arange(256).view(1, 1, 16, 16) / 255
    assert to_uint8(levels_of_grey).ravel().tolist() == list(range(256))
