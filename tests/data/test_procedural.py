"""The embedded data set: pure in its arguments, the same at every size, and a learning problem of shape too."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flowergen.data.procedural import MAX_CLASSES, SPECIES, class_names, draw_flower
from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.errors import UserError
from tests.data.test_image_datamodule import OPTIONS


def _gray(indices, size_px=32, num_classes=8):
    pictures = np.stack([draw_flower(0, index, size_px, num_classes) for index in indices])
    return pictures.mean(axis=3)


def _texture(gray):
    """Radial profile of the log power spectrum of each picture: blind to place, rotation, brightness and colour."""
    normal = (gray - gray.mean(axis=(1, 2), keepdims=True)) / gray.std(axis=(1, 2), keepdims=True)
    power = np.log(np.abs(np.fft.fft2(normal)) ** 2 + 1e-3)
    frequency = np.fft.fftfreq(gray.shape[1]) * gray.shape[1]
    radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int)
    return np.stack([power[:, radius == r].mean(axis=1) for r in range(1, gray.shape[1] // 2)], axis=1)


def _accuracy_of_nearest_mean(features, labels):
    """The first half of the pictures gives the class means, the second half is classified."""
    half = len(labels) // 2
    classes = np.unique(labels)
    scaled = (features - features[:half].mean(axis=0)) / features[:half].std(axis=0)
    means = np.stack([scaled[:half][labels[:half] == label].mean(axis=0) for label in classes])
    distances = np.linalg.norm(scaled[half:, None] - means[None], axis=2)
    return (classes[distances.argmin(axis=1)] == labels[half:]).mean()


def test_picture_is_uint8_rgb():
    picture = draw_flower(0, 0, 16, 8)
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


def test_picture_is_a_pure_function_of_its_arguments_also_across_threads():
    alone = [draw_flower(3, index, 32, 8) for index in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: draw_flower(3, index, 32, 8), reversed(range(16))))[::-1]
    np.testing.assert_array_equal(alone, together)


def test_global_random_state_is_neither_read_nor_moved():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = draw_flower(0, 5, 16, 8)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    np.testing.assert_array_equal(draw_flower(0, 5, 16, 8), first)


@pytest.mark.parametrize("label", [0, 3, 7])
def test_class_looks_the_same_whatever_the_number_of_classes(label):
    np.testing.assert_array_equal(draw_flower(0, label, 32, 8), draw_flower(0, label, 32, MAX_CLASSES))
    assert class_names(8)[label] == class_names(MAX_CLASSES)[label]


def test_class_does_not_depend_on_the_seed():
    """The mean picture of a class under one seed is nearest to that of the same class under another seed."""
    means = [[np.mean([draw_flower(seed, i, 16, 4) for i in range(c, 160, 4)], axis=0) for c in range(4)] for seed in (0, 1)]
    distance = [[np.abs(a - b).mean() for b in means[1]] for a in means[0]]
    assert np.argmin(distance, axis=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("small_px", [16, 32, 64])
def test_another_size_shows_the_same_picture(small_px):
    """A picture of twice the size, averaged down, is near; another picture is far."""
    for index in range(8):
        small = draw_flower(0, index, small_px, 8).astype(float)
        large = draw_flower(0, index, 2 * small_px, 8).astype(float)
        averaged = large.reshape(small_px, 2, small_px, 2, 3).mean(axis=(1, 3))
        other = draw_flower(0, index + 8, small_px, 8).astype(float)
        assert np.abs(small - averaged).mean() < 4
        assert np.abs(small - averaged).mean() < 0.25 * np.abs(small - other).mean()


@pytest.mark.parametrize("size_px", [8, 17, 100])
def test_any_size_can_be_drawn(size_px):
    assert draw_flower(0, 1, size_px, 8).shape == (size_px, size_px, 3)


def test_pictures_of_one_class_differ():
    pictures = np.stack([draw_flower(0, index, 32, 8) for index in range(0, 160, 8)]).astype(float)
    distances = np.abs(pictures[:, None] - pictures[None]).mean(axis=(2, 3, 4))
    assert distances[~np.eye(len(pictures), dtype=bool)].min() > 8


def test_first_eight_classes_are_told_apart_without_colour_place_or_rotation():
    indices = np.arange(8 * 40)
    assert _accuracy_of_nearest_mean(_texture(_gray(indices)), indices % 8) > 0.4  # chance: 0.125; seen: 0.54 or more


@pytest.mark.parametrize("label", [0, 5, 7])
def test_classes_of_the_same_colours_are_told_apart_by_shape(label):
    """Labels 65 apart share the 13 petal and the 5 centre colours."""
    other = label + 65
    assert SPECIES[label].colours == SPECIES[other].colours
    assert SPECIES[label].centre_rgb is SPECIES[other].centre_rgb
    turns = np.arange(80) * MAX_CLASSES
    indices = np.stack([turns + label, turns + other], axis=1).ravel()
    features = _texture(_gray(indices, num_classes=MAX_CLASSES))
    assert _accuracy_of_nearest_mean(features, indices % MAX_CLASSES) > 0.8  # chance: 0.5; seen: 0.92 or more


def test_every_class_has_a_name_of_its_own():
    names = class_names(MAX_CLASSES)
    assert len(names) == len(set(names)) == 102
    assert all(name.replace("_", "").isalnum() and name == name.lower() for name in names)


def test_first_eight_classes_differ_in_shape_and_in_colour():
    traits = [name.split("_") for name in class_names(8)]
    assert len({colour for colour, *_ in traits}) == 8
    assert len({shape for _, _, shape, *_ in traits}) == 8


def test_classes_take_turns(tmp_path):
    data = ProceduralDataModule(num_images=7, num_classes=3, drawing_seed=0, cache_dir=tmp_path, **OPTIONS)
    assert data.listing().labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("num_classes", [-1, 0, 103])
def test_number_of_classes_out_of_range_is_refused_in_one_line(num_classes):
    for call in (lambda: class_names(num_classes), lambda: draw_flower(0, 0, 32, num_classes)):
        with pytest.raises(UserError, match="choose 1 to 102 classes") as error:
            call()
        assert "\n" not in str(error.value)


def test_too_small_a_picture_is_refused_in_one_line():
    with pytest.raises(UserError, match="choose 8 pixels or more"):
        draw_flower(0, 0, 7, 8)
