"""Landscapes, CelebA, dogs, and the segmented flowers: layouts made here, and the photographs where they are."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.celeba import list_celeba
from flowergen.data.celeba_datamodule import CelebADataModule
from flowergen.data.dogs_datamodule import DogsDataModule
from flowergen.data.flowers102 import BACKGROUND, list_flowers102, without_background
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.landscapes_datamodule import LandscapesDataModule
from flowergen.errors import UserError
from tests.conftest import save_grey as picture

OPTIONS: dict[str, Any] = {
    "name": "test",
    "image_size": 32,
    "batch_size": 2,
    "split": "auto",
    "split_seed": 0,
    "horizontal_flip": False,
    "on_corrupt": "error",
    "seed": 0,
}


# ---- CelebA
def test_celeba_has_its_attribute_as_label_and_its_own_partition(celeba: Path, tmp_path: Path) -> None:
    for root in (celeba, celeba / "celeba"):
        listing = list_celeba(root, "Smiling")
        assert listing.class_names == ("not_Smiling", "Smiling")
        assert listing.labels.tolist() == [number % 2 for number in range(1, 61)]
        assert listing.subsets is not None
        assert listing.subsets.tolist() == ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    assert set(list_celeba(celeba).labels.tolist()) == {-1}
    data = CelebADataModule(root=celeba, attribute="Male", cache_dir=tmp_path / "cache", **OPTIONS | {"image_size": 150})
    data.setup()
    assert {subset: len(rows) for subset, rows in data.rows.items()} == {"train": 40, "val": 10, "test": 10}
    assert data.pictures[[0]].image.shape == (1, 3, 150, 150)
    assert set(data.pictures.labels.tolist()) == {0}
    grey = OPTIONS | {"image_size": [109, 89], "channels": 1, "fit": "pad"}
    data = CelebADataModule(root=celeba, attribute=None, cache_dir=tmp_path / "cache", **grey)
    data.setup()
    assert (data.pictures[[0]].image == 1).all(), "faces of 218 x 178 px fill it"
    assert data.pictures[[0]].image.shape == (1, 1, 109, 89)


def test_the_layout_is_the_one_that_torchvision_reads(celeba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser, past its check of the original files' sums, gives the same labels and partition."""
    from torchvision.datasets import CelebA

    for name in ("identity_CelebA.txt", "list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        lines = [f"{number:06d}.jpg 1 2 3 4" for number in range(1, 61)]
        (celeba / "celeba" / name).write_text(
            "\n".join(lines if name.startswith("identity") else ["60", "a b c d", *lines]) + "\n"
        )
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    listing = list_celeba(celeba, "Smiling")
    theirs = CelebA(str(celeba), split="valid")
    column = theirs.attr_names.index("Smiling")
    assert [f"img_align_celeba/{name}" for name in theirs.filename] == list(listing.names[40:50])
    assert theirs.attr[:, column].tolist() == listing.labels[40:50].tolist()


def test_a_bare_folder_of_faces_will_do_but_has_no_attributes(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "faces" / f"{number}.png", number)
    assert len(list_celeba(tmp_path / "faces").names) == 3
    with pytest.raises(UserError, match=r"data\.attribute=Smiling: .*leave data\.attribute out"):
        list_celeba(tmp_path / "faces", "Smiling")


@pytest.mark.parametrize("reason", ["quota", "no gdown"])
def test_a_download_out_of_quota_says_what_to_fetch_and_where_to_put_it(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "quota":  # a stand-in for gdown, which raises its own kind of exception
        kind = type("FileURLRetrievalError", (Exception,), {"__module__": "gdown.exceptions"})

        def refuse(*_: Any, **__: Any) -> None:
            raise kind("Too many users have viewed or downloaded\nthis file recently.")

        monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=refuse))
    else:
        monkeypatch.setitem(sys.modules, "gdown", None)
    for _ in range(2):  # what the first attempt leaves behind must not be taken for faces
        with pytest.raises(UserError) as raised:
            list_celeba(tmp_path / "data" / "celeba")
    message = str(raised.value)
    for part in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt", "mmlab.ie.cuhk.edu.hk", "unpack"):
        assert part in message
    assert str(tmp_path / "data" / "celeba") in message
    assert ("Too many users" if reason == "quota" else "gdown") in message


def test_other_data_sets_beside_it_are_no_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default root is a folder of its own, which is not there before the download."""
    picture(tmp_path / "data" / "flowers-102" / "jpg" / "image_00001.jpg", 1)
    config = resolve(checked(["data=celeba", f"paths.data_dir={tmp_path / 'data'}"])[0])["data"]
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"img_align_celeba\.zip"):
        list_celeba(Path(config["root"]), config["attribute"])


def test_pictures_unpacked_into_a_second_folder_are_found(celeba: Path) -> None:
    folder = celeba / "celeba" / "img_align_celeba"
    folder.rename(celeba / "inner")
    folder.mkdir()
    (celeba / "inner").rename(folder / "img_align_celeba")
    (celeba / "celeba" / "list_attr_celeba.txt").unlink()  # needed for an attribute alone
    assert len(list_celeba(celeba).names) == 60


def test_what_is_wrong_with_a_celeba_folder_is_named(celeba: Path) -> None:
    attributes = celeba / "celeba" / "list_attr_celeba.txt"
    whole = attributes.read_text()
    for damaged in ("<html>quota exceeded</html>\n\n", whole[: len(whole) // 2]):
        attributes.write_text(damaged)
        with pytest.raises(UserError, match="download it again"):
            list_celeba(celeba, "Smiling")
    attributes.write_text(whole)
    (celeba / "celeba" / "img_align_celeba" / "000007.jpg").unlink()
    with pytest.raises(UserError, match="lacks 1 of 60 pictures"):
        list_celeba(celeba)
    (celeba / "celeba" / "list_attr_celeba.txt").unlink()
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt is missing"):
        list_celeba(celeba, "Smiling", download=False)


# ---- Landscapes and dogs
@pytest.mark.parametrize("names", [("Training Data", "Validation Data", "Testing Data"), ("train", "valid", "TEST_images")])
def test_landscapes_have_their_own_split_under_any_usual_names(names: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "l" / names[number % 3] / ("sea" if number % 2 else "forest") / f"{number}.png", number)
    data = LandscapesDataModule(root=tmp_path / "l", cache_dir=tmp_path / "cache", **OPTIONS)
    data.setup()
    assert data.class_names == ("forest", "sea")
    assert [len(rows) for rows in data.rows.values()] == [10, 10, 10]


def test_landscapes_without_a_split_are_told_which_names_are_known(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "l" / ("sea" if number % 2 else "forest") / f"{number}.png", number)
    with pytest.raises(UserError) as raised:
        LandscapesDataModule(root=tmp_path / "l", cache_dir=tmp_path / "cache", **OPTIONS).setup()
    for name in ("training", "validation", "valid", "testing", '"Training Data"', "data.split=stratified"):
        assert name in str(raised.value)
    LandscapesDataModule(root=tmp_path / "l", cache_dir=tmp_path / "cache", **OPTIONS | {"split": "stratified"}).setup()


def test_stanford_dogs_breeds_lose_their_wordnet_number(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "Images" / ("n02085620-Chihuahua" if number % 2 else "n02111889-Samoyed") / f"{number}.png", number)
    data: ImageDataModule = DogsDataModule(root=tmp_path, cache_dir=tmp_path / "cache", **OPTIONS)
    data.setup()
    assert data.class_names == ("Chihuahua", "Samoyed")


# ---- Segmented flowers
def test_what_the_segmentation_painted_blue_becomes_plain_through_jpeg(tmp_path: Path) -> None:
    """A disc on a busy background; the segmentation is stored as JPEG of quality 75, as the official ones are JPEGs."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    distance = np.hypot(*np.mgrid[-40:40, -45:45])
    image[distance < 25] = (200, 60, 120)
    segmented = np.where(distance[..., None] < 25, image, np.uint8([0, 0, 254]))
    Image.fromarray(segmented).save(tmp_path / "s.jpg", quality=75)
    plain = without_background(image, np.asarray(Image.open(tmp_path / "s.jpg")))
    assert (plain[distance > 34] == BACKGROUND).all(), "JPEG works in blocks: a rim of a few pixels may stay"
    np.testing.assert_array_equal(plain[distance < 20], image[distance < 20])


@pytest.mark.real_data
def test_segmented_flowers_keep_their_split_and_say_where_to_get_them(photographs: Path, tmp_path: Path) -> None:
    """Segmentations made here, with the upper half cut out, stand in for the official ones, which cannot be had."""
    source = photographs / "flowers102_64px" / "flowers-102"
    folder = tmp_path / "flowers-102"
    folder.mkdir()
    for name in ("jpg", "imagelabels.mat", "setid.mat"):
        (folder / name).symlink_to(source / name)
    with pytest.raises(UserError) as raised:
        list_flowers102(tmp_path, download=False, segmented=True)
    for part in ("8,189 of 8,189", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102segmentations.tgz", str(folder)):
        assert part in str(raised.value)

    plain = list_flowers102(tmp_path, download=False)
    cut = np.asarray(Image.open(source / plain.names[0])).copy()
    cut[:32] = (0, 0, 254)
    (folder / "segmim").mkdir()
    first = folder / "segmim" / "segmim_00001.jpg"
    Image.fromarray(cut).save(first, quality=95)
    for number in range(2, 8190):
        (folder / "segmim" / f"segmim_{number:05d}.jpg").symlink_to(first)
    segmented = list_flowers102(tmp_path, download=False, segmented=True)
    (image, digest), (original, original_digest) = segmented.read(0), plain.read(0)
    assert (image[:28] == BACKGROUND).all()
    np.testing.assert_array_equal(image[36:], original[36:])
    assert digest == original_digest, "the split goes by digests: it is the same one"
    assert segmented.fingerprint != plain.fingerprint
    shutil.copy(first, tmp_path / "other.jpg")
    first.unlink()
    Image.fromarray(cut[:, :40]).save(first)
    assert list_flowers102(tmp_path, download=False, segmented=True).fingerprint != segmented.fingerprint
