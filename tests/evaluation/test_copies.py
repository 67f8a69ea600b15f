"""A generator that copies must be caught; held-out pictures must not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.evaluation import copies
from flowergen.evaluation.copies import COPY_RATIO
from flowergen.randomness import generator
from tests.tiny_models import drawn

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def data(cache_dir: Path) -> ProceduralDataModule:
    """400 flowers: 320 to train, 40 to calibrate, 40 as the control."""
    return drawn(cache_dir, num_images=400, num_classes=4, image_size=32)


def of(data: ProceduralDataModule, subset: str) -> np.ndarray:
    return np.asarray(data.pictures.images[data.rows[subset]])


def noisy(images: np.ndarray, levels: float, seed: int = 0) -> np.ndarray:
    """With Gaussian noise of so many grey levels."""
    return np.clip(images + RNG(seed).normal(0, levels, images.shape), 0, 255).round().astype(np.uint8)


def jpeg(images: np.ndarray) -> np.ndarray:
    """Saved as JPEG and read again."""
    out = []
    for picture in images:
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(file, "JPEG", quality=92)
        out.append(np.asarray(Image.open(file)).transpose(2, 0, 1))
    return np.stack(out)


def unchanged(images: np.ndarray) -> np.ndarray:
    return images


def noise(images: np.ndarray) -> np.ndarray:
    return noisy(images, 6)


def mirror(images: np.ndarray) -> np.ndarray:
    return images[..., ::-1]


def variants(vectors: np.ndarray, mirrored: bool) -> list[np.ndarray]:
    """Vectors of pictures of 32 px and, if wanted, of their mirror images."""
    return [vectors, copies.mirrored(vectors, 32)] if mirrored else [vectors]


class Search:
    """What ``evaluate`` does with pixels."""

    def __init__(self, data: ProceduralDataModule, train: np.ndarray, mirrored: bool = False):
        vectors = copies.pixel_vectors(train)
        self.mirrored, self.kept = mirrored, copies.distinct(variants(vectors, mirrored))
        self.candidates = vectors[self.kept]
        self.calibrated, _ = copies.calibrated_ratio(self.of(of(data, "val")).ratio)

    def of(self, images: np.ndarray) -> copies.Neighbours:
        of_images = variants(copies.pixel_vectors(images), self.mirrored)
        return copies.neighbours(of_images, self.candidates, self.kept)

    def rates(self, images: np.ndarray) -> tuple[float, float]:
        ratio = self.of(images).ratio
        return copies.copy_rate(ratio, COPY_RATIO), copies.copy_rate(ratio, self.calibrated)


# -- the promise


@pytest.mark.parametrize(
    ("change", "mirrored"), [(unchanged, False), (noise, False), (jpeg, False), (mirror, True), (unchanged, True)]
)
def test_a_generator_that_returns_training_pictures_is_caught_by_both_bounds(
    change: Callable[[np.ndarray], np.ndarray], mirrored: bool, data: ProceduralDataModule
) -> None:
    """Exactly, with a little noise, saved as JPEG, or mirrored where training has shown mirror images."""
    search = Search(data, of(data, "train"), mirrored)
    third, calibrated = search.rates(change(of(data, "train")[::3]))
    assert third > 0.95
    assert calibrated == 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_held_out_pictures_are_not_taken_for_copies(mirrored: bool, data: ProceduralDataModule) -> None:
    """None by the usual bound; about one in a hundred by the calibrated one, so at most two of forty."""
    search = Search(data, of(data, "train"), mirrored)
    assert search.calibrated > 0.6
    third, calibrated = search.rates(of(data, "test"))
    assert third == 0
    assert calibrated <= 0.05


def test_mirror_images_are_new_pictures_where_training_has_shown_none(data: ProceduralDataModule) -> None:
    third, calibrated = Search(data, of(data, "train")).rates(mirror(of(data, "train")))
    assert third == 0
    assert calibrated < 0.05


@pytest.mark.parametrize("levels", [0, 4], ids=["the same", "slightly changed"])
@pytest.mark.parametrize("order", ["side by side", "one after the other", "shuffled", "a quarter of them"])
def test_near_duplicates_in_the_training_set_are_taken_out_and_hide_no_copies(
    order: str, levels: float, data: ProceduralDataModule
) -> None:
    """Each training picture twice: the second nearest of a copy is as near as the nearest otherwise."""
    train = of(data, "train")
    again = noisy(train, levels, seed=1)
    if order == "side by side":
        both = np.stack((train, again), 1).reshape(-1, *train.shape[1:])
    else:
        both = np.concatenate((train, again[::4] if order == "a quarter of them" else again))
    if order == "shuffled":
        both = both[RNG(2).permutation(len(both))]
    search = Search(data, both)
    assert len(search.kept) == len(train)
    assert search.rates(noise(train[::3])) == (1, 1)
    third, calibrated = search.rates(of(data, "test"))
    assert third == 0
    assert calibrated <= 0.05


def test_mirror_images_among_the_training_pictures_are_duplicates_where_training_mirrors(data: ProceduralDataModule) -> None:
    train = of(data, "train")
    both = copies.pixel_vectors(np.concatenate((train, mirror(train[:50]))))
    assert copies.distinct(variants(both, True)).tolist() == list(range(len(train)))
    assert len(copies.distinct([both])) == len(both)


def test_nothing_is_taken_out_of_pictures_that_differ(data: ProceduralDataModule) -> None:
    vectors = copies.pixel_vectors(of(data, "train"))
    assert copies.distinct(variants(vectors, True)).tolist() == list(range(len(vectors)))


# -- its parts


def test_equal_pictures_count_as_one_however_many_there_are(data: ProceduralDataModule) -> None:
    vectors = copies.pixel_vectors(of(data, "train")[:40])
    assert copies.distinct([np.tile(vectors, (5, 1))]).tolist() == list(range(40))


@pytest.mark.parametrize(("num", "left"), [(0, []), (1, [0]), (2, [0, 1]), (4, [0, 1]), (9, [0, 1])])
def test_of_equal_pictures_two_are_left_to_compare_with(num: int, left: list[int]) -> None:
    assert copies.distinct([np.full((num, 12), 9, np.uint8)]).tolist() == left


def test_pixels_up_to_64_px_are_taken_as_they_are_and_larger_ones_made_smaller() -> None:
    images = RNG(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    np.testing.assert_array_equal(copies.pixel_vectors(images), images.reshape(3, -1))
    large = RNG(1).integers(0, 256, (3, 3, 150, 150), dtype=np.uint8)
    found = copies.pixel_vectors(large)
    assert (found.shape, found.dtype) == ((3, 3 * 64 * 64), np.uint8)
    pillow = Image.fromarray(large[1].transpose(1, 2, 0)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[1].reshape(3, 64, 64).transpose(1, 2, 0).astype(int), np.asarray(pillow), atol=2)


def test_large_pictures_are_made_smaller_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images = RNG(0).integers(0, 256, (5, 3, 80, 80), dtype=np.uint8)
    whole = copies.pixel_vectors(images)
    monkeypatch.setattr(copies, "CHUNK_SIZE", 2)
    np.testing.assert_array_equal(copies.pixel_vectors(images), whole)


@pytest.mark.parametrize("size", [8, 80], ids=["as they are", "made smaller"])
@pytest.mark.parametrize("rows", [[4, 0, 3, 3, 1], [2], []], ids=str)
def test_rows_are_selected_in_their_order_in_parts_of_a_memory_map_too(
    rows: list[int], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RNG(0).integers(0, 256, (5, 3, size, size), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    whole = copies.pixel_vectors(images)
    monkeypatch.setattr(copies, "CHUNK_SIZE", 2)
    for some in (images, np.load(tmp_path / "images.npy", mmap_mode="r")):
        found = copies.pixel_vectors(some, np.array(rows, dtype=np.int64))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, whole[np.array(rows, dtype=np.int64)])


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 48, 64), (3, 8, 5)])
def test_vectors_are_mirrored_as_pictures(shape: tuple[int, int, int]) -> None:
    images = RNG(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    vectors = copies.pixel_vectors(images)
    np.testing.assert_array_equal(vectors, images.reshape(4, -1))
    np.testing.assert_array_equal(copies.mirrored(vectors, shape[-1]), images[..., ::-1].reshape(4, -1))


@pytest.mark.parametrize(
    ("shape", "small"), [((1, 48, 64), (1, 48, 64)), ((3, 48, 90), (3, 48, 64)), ((1, 128, 96), (1, 64, 64))]
)
def test_no_side_that_is_compared_is_above_64_px(shape: tuple[int, int, int], small: tuple[int, int, int]) -> None:
    """Of the mirror image of a large picture as well, but for rounding."""
    images = RNG(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    vectors = copies.pixel_vectors(images)
    assert copies.compared_shape(shape) == small
    assert (vectors.shape, vectors.dtype) == ((3, int(np.prod(small))), np.uint8)
    assert copies.pixel_vectors(images, np.zeros(0, np.int64)).shape == (0, int(np.prod(small)))
    channel = Image.fromarray(images[1, 0]).resize(small[:0:-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(vectors[1].reshape(small)[0].astype(int), np.asarray(channel), atol=2)
    mirrored = copies.mirrored(vectors, shape[-1]).astype(int)
    np.testing.assert_allclose(mirrored, copies.pixel_vectors(np.ascontiguousarray(images[..., ::-1])), atol=1)


def test_neighbours_are_rows_among_all_training_pictures_and_the_ratio_of_their_distances() -> None:
    train, kept = np.array([[0.0], [10.0], [100.0]], np.float32), np.array([4, 7, 9])
    found = copies.neighbours([np.array([[1.0], [98.0], [10.0], [5.0]], np.float32)], train, kept)
    assert found.row.tolist() == [[4, 7], [9, 7], [7, 4], [4, 7]]
    np.testing.assert_allclose(found.ratio, [1 / 9, 2 / 88, 0, 1], rtol=1e-6)


def test_a_picture_that_equals_a_training_picture_is_a_copy_however_near_the_second_one_is() -> None:
    found = copies.neighbours([np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)], np.zeros((2, 2), np.float32), np.arange(2))
    assert found.ratio.tolist() == [0, 1]
    assert copies.copy_rate(found.ratio, COPY_RATIO) == 0.5


@pytest.mark.parametrize(
    ("num", "place"), [(1, 1), (20, 1), (98, 1), (99, 1), (198, 1), (199, 2), (409, 4), (2899, 29), (5699, 57)]
)
def test_the_calibrated_bound_is_one_of_the_ratios_at_its_place_from_below(num: int, place: int) -> None:
    """The first where there are fewer than 199; in any order; as likely below it as each of the N + 1 places."""
    ratio = RNG(num).random(num)
    bound, by_chance = copies.calibrated_ratio(ratio)
    assert copies.copy_rate(ratio, bound) == (place - 1) / num
    assert bound in ratio
    assert by_chance == place / (num + 1)
    assert (by_chance <= 0.01) == (num >= 99)


@pytest.mark.parametrize("num", [20, 99, 409])
def test_of_new_pictures_as_many_fall_below_the_calibrated_bound_as_it_says(num: int) -> None:
    """Calibrated anew for each of 40 000, within four standard errors: 1 in 21 of twenty, at most 1 in 100 of 99."""
    draws, repeats = generator(0, num, "test of the calibrated bound"), 40_000
    found = 0
    for ratio in draws.random((repeats, num + 1), dtype=np.float32):  # the last is the new one's
        bound, by_chance = copies.calibrated_ratio(ratio[:num])
        found += ratio[num] < bound
    expected = max(1, (num + 1) // 100) / (num + 1)
    assert by_chance == pytest.approx(expected)
    error = (expected * (1 - expected) / repeats) ** 0.5
    assert found / repeats == pytest.approx(expected, abs=4 * error)
    if num >= 99:
        assert found / repeats <= 0.01 + 4 * error


def test_the_worst_are_the_smallest_ratios_in_order() -> None:
    ratio = np.array([0.5, 0.1, 0.9, 0.1, 0.3])
    assert copies.indices_of_smallest(ratio, 3).tolist() == [1, 3, 4]
    assert copies.indices_of_smallest(ratio, 99).tolist() == [1, 3, 4, 0, 2]
    assert copies.copy_rate(ratio, 0.3) == 0.4
