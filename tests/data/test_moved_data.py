"""A data set that lies elsewhere than when its run started, or is another one by now."""

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flowergen.data.image_folder_datamodule import ImageFolderDataModule
from flowergen.errors import UserError


def of(root: Path, cache_dir: Path) -> ImageFolderDataModule:
    data = ImageFolderDataModule(
        root,
        name="test",
        image_size=16,
        batch_size=4,
        split="auto",
        split_seed=0,
        horizontal_flip=True,
        on_corrupt="skip",
        cache_dir=cache_dir,
        seed=0,
    )
    data.setup()
    return data


def test_a_data_set_that_moved_is_the_same_one(tmp_path: Path, picture_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint's state fits, and nothing is decoded again; also where it was copied and lost its times."""
    state = of(picture_folder, tmp_path / "cache").state_dict()
    moved = Path(shutil.move(picture_folder, tmp_path / "elsewhere"))
    caplog.set_level(logging.INFO)
    of(moved, tmp_path / "cache").load_state_dict(state)
    assert "decoding" not in caplog.text
    copy = shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copyfile)
    of(copy, tmp_path / "cache").load_state_dict(state)
    assert "decoding 60 pictures" in caplog.text


@pytest.mark.parametrize("change", ["removed", "added", "other pixels", "damaged", "another class"])
def test_a_data_set_that_changed_is_another_one(tmp_path: Path, picture_folder: Path, change: str) -> None:
    """One line; training pictures might be held out, or the other way round."""
    state = of(picture_folder, tmp_path / "cache").state_dict()
    path = picture_folder / "roses" / "IMG (7).png"
    if change == "removed":
        path.unlink()
    elif change == "added":
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path.with_name("new.png"))
    elif change == "other pixels":
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    else:
        path.rename(picture_folder / "tulips" / path.name)
    with pytest.raises(UserError, match=r"the pictures, labels or split of .* have changed since the run started") as raised:
        of(picture_folder, tmp_path / "cache").load_state_dict(state)
    assert "\n" not in str(raised.value)
