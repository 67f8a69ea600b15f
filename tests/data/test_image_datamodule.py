from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.data.batch import Batch
from flowergen.data.flowers102_datamodule import Flowers102DataModule
from flowergen.data.image_folder_datamodule import ImageFolderDataModule
from flowergen.data.procedural import draw_flower
from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape

OPTIONS: dict[str, Any] = {
    "name": "test",
    "image_size": 16,
    "batch_size": 4,
    "split": "stratified",
    "split_seed": 0,
    "horizontal_flip": True,
    "on_corrupt": "error",
    "seed": 0,
}


def drawn(cache_dir: Path, **changes: Any) -> ProceduralDataModule:
    data = ProceduralDataModule(num_images=100, num_classes=5, drawing_seed=0, **{**OPTIONS, "cache_dir": cache_dir, **changes})
    data.setup()
    return data


class Training:
    """As much of a trainer as a batch on its way to the device asks for."""

    training, current_epoch = True, 0


def test_pictures_become_floats_from_0_to_1_and_half_of_them_are_mirrored(cache_dir: Path) -> None:
    data = drawn(cache_dir)
    batch = data.pictures[list(range(100))]
    assert batch.image.dtype == torch.uint8
    plain = data.on_after_batch_transfer(batch, 0).image
    torch.testing.assert_close(plain, batch.image.float() / 255, rtol=0, atol=0)
    data.trainer = Training()  # type: ignore[assignment]
    flipped = data.on_after_batch_transfer(batch, 0).image
    is_mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    is_same = (flipped == plain).flatten(1).all(1)
    assert (is_mirrored | is_same).all()
    assert 30 < is_mirrored.sum() < 70


def test_flips_belong_to_the_picture_and_the_epoch_and_not_to_the_batch(cache_dir: Path) -> None:
    data = drawn(cache_dir)
    data.trainer = Training()  # type: ignore[assignment]
    whole = data.on_after_batch_transfer(data.pictures[list(range(50))], 0).image
    part = data.on_after_batch_transfer(data.pictures[[7, 3]], 0).image
    torch.testing.assert_close(part, whole[[7, 3]], rtol=0, atol=0)
    data.trainer.current_epoch = 1  # type: ignore[misc]
    assert not torch.equal(data.on_after_batch_transfer(data.pictures[list(range(50))], 0).image, whole)


def test_the_crop_is_mirrored_and_not_the_picture_before_it(cache_dir: Path) -> None:
    images = []
    for flip in (True, False):
        data = drawn(cache_dir, random_resized_crop=[0.5, 1], horizontal_flip=flip)
        data.trainer = Training()  # type: ignore[assignment]
        images.append(data.on_after_batch_transfer(data.pictures[list(range(100))], 0).image)
    flipped, plain = images
    is_mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    is_same = (flipped == plain).flatten(1).all(1)
    assert (is_mirrored | is_same).all()
    assert 30 < is_mirrored.sum() < 70


def test_the_split_has_a_seed_of_its_own(cache_dir: Path) -> None:
    def val(**seeds: int) -> list[int]:
        return drawn(cache_dir, **seeds).rows["val"].tolist()

    assert val(seed=0) == val(seed=1)
    assert val(split_seed=0) != val(split_seed=1)
    assert {name: len(rows) for name, rows in drawn(cache_dir).rows.items()} == {"train": 80, "val": 10, "test": 10}


def test_all_holds_nothing_out_and_says_so(cache_dir: Path) -> None:
    data = drawn(cache_dir, split="all")
    assert len(data.rows["train"]) == 100
    assert not data.held_out
    with pytest.raises(UserError, match="no test pictures"):
        data.test_dataloader()


def test_batches_are_the_rows_of_the_cache(cache_dir: Path) -> None:
    data = drawn(cache_dir)
    batches = list(data.test_dataloader())
    assert all(isinstance(batch, Batch) for batch in batches)
    assert torch.cat([batch.index for batch in batches]).tolist() == data.rows["test"].tolist()
    assert torch.cat([batch.label for batch in batches]).tolist() == (data.rows["test"] % 5).tolist()


def folder_module(root: Path, cache_dir: Path, **changes: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root=root, **{**OPTIONS, "cache_dir": cache_dir, "split": "auto", **changes})
    data.setup()
    return data


def write_pictures(folder: Path, num: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(num):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def test_train_and_test_folders_are_kept_and_a_tenth_of_train_validates(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set" / "train" / "a", 40, 0)
    write_pictures(tmp_path / "set" / "test" / "a", 10, 1)
    data = folder_module(tmp_path / "set", tmp_path / "cache")
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 36, "val": 4, "test": 10}
    assert all("test/" in data.listing().names[row] for row in data.rows["test"])


def test_a_folder_without_a_split_of_its_own_has_no_official_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 40, 0)
    assert len(folder_module(tmp_path / "set", tmp_path / "cache").rows["train"]) == 32
    with pytest.raises(UserError, match=r"data\.split=stratified"):
        folder_module(tmp_path / "set", tmp_path / "cache", split="official")


@pytest.mark.parametrize(("num", "words"), [(3, "do not fill one batch of 4"), (4, "no validation picture")])
def test_too_few_pictures_are_told_apart(tmp_path: Path, num: int, words: str) -> None:
    write_pictures(tmp_path / "set", num, 0)
    with pytest.raises(UserError, match=words):
        folder_module(tmp_path / "set", tmp_path / "cache")


def test_corrupt_files_stop_or_are_skipped(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 40, 0)
    (tmp_path / "set" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"broken\.jpg.*data\.on_corrupt=skip"):
        folder_module(tmp_path / "set", tmp_path / "cache")
    data = folder_module(tmp_path / "set", tmp_path / "cache", on_corrupt="skip")
    assert sum(map(len, data.rows.values())) == 40


# ---- Shapes
@pytest.mark.parametrize("image_size", [16, [48, 64], [20, 12]])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_batches_have_the_shape_that_was_asked_for(tmp_path: Path, image_size: Any, channels: int, fit: str) -> None:
    """Of both kinds of pictures, with all augmentations."""
    shape = PictureShape.of(image_size, channels)
    write_pictures(tmp_path / "set", 40, 0)
    changes = {"image_size": image_size, "channels": channels, "fit": fit, "random_resized_crop": [0.5, 1], "color_jitter": 0.5}
    for data in (drawn(tmp_path / "cache", **changes), folder_module(tmp_path / "set", tmp_path / "cache", **changes)):
        assert data.picture_shape == shape
        assert f"pictures of {shape}, " in data.summary()
        batch = data.pictures[[5, 0, 7]]
        assert (batch.image.shape, batch.image.dtype) == ((3, *shape), torch.uint8)
        assert data.validation_images(2).shape == (2, *shape)
        data.trainer = Training()  # type: ignore[assignment]
        image = data.on_after_batch_transfer(batch, 0).image
        assert (image.shape, image.dtype) == ((3, *shape), torch.float32)
        assert image.min() >= 0
        assert image.max() <= 1


def test_a_padded_folder_shows_whole_pictures_between_black_borders(tmp_path: Path) -> None:
    """20 x 20 px, in 20 x 24 px: the pixels of the files."""
    write_pictures(tmp_path / "set", 40, 0)
    data = folder_module(tmp_path / "set", tmp_path / "cache", image_size=[20, 24], fit="pad")
    images = data.pictures[list(range(40))].image.numpy()
    for image, name in zip(images, data.names, strict=True):
        np.testing.assert_array_equal(image[:, :, 2:22].transpose(1, 2, 0), np.asarray(Image.open(tmp_path / "set" / name)))
    assert not images[..., :2].any()
    assert not images[..., 22:].any()


def test_flowers_are_drawn_as_squares_of_the_longer_side(tmp_path: Path) -> None:
    flower = draw_flower(0, 3, 24, 5).transpose(2, 0, 1)
    for image_size, expected in ((24, flower), ([24, 24], flower), ([16, 24], flower[:, 4:20]), ([24, 12], flower[:, :, 6:18])):
        found = drawn(tmp_path, image_size=image_size).pictures[[3]].image[0].numpy()
        np.testing.assert_array_equal(found, expected)
    padded = drawn(tmp_path, image_size=[16, 24], fit="pad").pictures[[3]].image[0].numpy()
    assert not padded[:, :, :4].any()
    assert not padded[:, :, 20:].any()
    assert padded[:, :, 4:20].any(axis=0).mean() > 0.9


def test_height_and_width_of_a_square_are_its_side(cache_dir: Path) -> None:
    ours, theirs = drawn(cache_dir, image_size=[16, 16]), drawn(cache_dir, image_size=16)
    assert (ours.pixels, ours.identity, ours.summary()) == (theirs.pixels, theirs.identity, theirs.summary())


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("split", "sizes"),
    [("stratified", (6551, 819, 819)), ("official", (1020, 1020, 6149)), ("all", (8189, 0, 0))],
)
def test_oxford_flowers_have_three_splits(photographs: Path, cache_dir: Path, split: str, sizes: tuple[int, ...]) -> None:
    data = Flowers102DataModule(
        root=photographs / "flowers102_64px",
        segmented=False,
        **{**OPTIONS, "name": "flowers102", "cache_dir": cache_dir, "split": split},
    )
    data.setup()
    assert tuple(len(data.rows[subset]) for subset in ("train", "val", "test")) == sizes
    assert data.class_names[76] == "passion_flower"
