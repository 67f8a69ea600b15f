"""Data sets in the formats of the Hugging Face hub: columns, classes, splits and pixels."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from flowergen.app.train_command import checked
from flowergen.data.huggingface_datamodule import HuggingFaceDataModule
from flowergen.errors import UserError
from tests.conftest import Command

NAMES = ["rose", "daisy"]


def picture(number: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def table(first: int, num: int, **columns: tuple[Any, list[Any]]) -> Dataset:
    """Pictures ``first`` to ``first + num``, with more columns by name: type and values."""
    features = Features(
        {"id": Value("int64"), "image": datasets.Image(), **{name: kind for name, (kind, _) in columns.items()}}
    )
    images = [{"bytes": picture(first + row), "path": None} for row in range(num)]
    values = {name: column for name, (_, column) in columns.items()}
    return Dataset.from_dict({"id": list(range(num)), "image": images, **values}, features=features)


def labelled(first: int, num: int) -> Dataset:
    return table(first, num, label=(ClassLabel(names=NAMES), [row % 2 for row in range(num)]))


def module(root: Path | None, cache_dir: Path, **changes: Any) -> HuggingFaceDataModule:
    options: dict[str, Any] = {
        "name": "huggingface", "root": root, "subset": None, "image_column": "auto", "label_column": "auto", "image_size": 16,
        "batch_size": 4, "split": "auto", "split_seed": 0, "horizontal_flip": False, "on_corrupt": "error",
        "cache_dir": cache_dir, "seed": 0,
    }  # fmt: skip
    return HuggingFaceDataModule(**options | changes)


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_splits_classes_and_pixels(kind: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published: validation pictures validate, and a split of another name is left out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    splits = DatasetDict(train=labelled(0, 10), validation=labelled(100, 4), test=labelled(200, 6), extra=labelled(300, 5))
    root = tmp_path / "set"
    if kind == "save_to_disk":
        splits.save_to_disk(root)
    else:
        (root / "data").mkdir(parents=True)
        for name, split in splits.items():
            split.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    data = module(root, cache_dir)
    data.setup()
    assert data.class_names == tuple(NAMES)
    assert list(data.names) == sorted(data.names)
    assert {subset: len(rows) for subset, rows in data.rows.items()} == {"train": 10, "val": 4, "test": 6}
    for subset, split, first in (("train", "train", 0), ("val", "validation", 100), ("test", "test", 200)):
        for row in data.rows[subset]:
            name, number = data.names[row].split("/")
            assert name == split
            listing = data.listing()
            pixels, digest = listing.read(listing.names.index(data.names[row]))
            assert np.array_equal(pixels, np.asarray(Image.open(BytesIO(picture(first + int(number))))))
            assert data.pictures.labels[row] == int(number) % 2
            assert len(digest) == 32
    assert data.listing().fingerprint == module(root, cache_dir).listing().fingerprint
    assert data.listing().fingerprint != module(root, cache_dir, label_column="none").listing().fingerprint


def test_one_split_is_divided_and_pictures_may_be_files(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture(0))
    paths = [{"bytes": None, "path": str(tmp_path / "one.png")}] + [{"bytes": picture(n), "path": None} for n in range(1, 40)]
    Dataset.from_dict({"picture": paths}, features=Features({"picture": datasets.Image()})).save_to_disk(tmp_path / "set")
    data = module(tmp_path / "set", cache_dir)
    data.setup()
    assert {subset: len(rows) for subset, rows in data.rows.items()} == {"train": 32, "val": 4, "test": 4}
    assert data.class_names == ()
    assert (data.pictures.labels == -1).all()


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["b", "a", "b", None], ("a", "b"), [1, 0, 1, -1]),
        ([30, 4, 4, 30], ("4", "30"), [1, 0, 0, 1]),
    ],
)
def test_any_column_can_name_the_classes(
    values: list[Any], names: tuple[str, ...], labels: list[int], tmp_path: Path, cache_dir: Path
) -> None:
    kind = Value("string" if isinstance(values[0], str) else "int64")
    table(0, 4, species=(kind, values)).save_to_disk(tmp_path / "set")
    listing = module(tmp_path / "set", cache_dir, label_column="species").listing()
    assert (listing.class_names, listing.labels.tolist()) == (names, labels)
    assert module(tmp_path / "set", cache_dir).listing().class_names == (), "auto takes columns of classes only"


def test_a_row_without_a_picture_is_left_out_on_demand(tmp_path: Path, cache_dir: Path) -> None:
    images = [{"bytes": picture(n), "path": None} for n in range(30)] + [None, {"bytes": b"broken", "path": None}]
    Dataset.from_dict({"image": images}, features=Features({"image": datasets.Image()})).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match=r"train/000030 \(no picture in this row\), train/000031 \(not a picture\)"):
        module(tmp_path / "set", cache_dir).setup()
    data = module(tmp_path / "set", cache_dir, on_corrupt="skip")
    data.setup()
    assert len(data.pictures) == 30


def test_columns_that_are_not_clear_are_refused(tmp_path: Path, cache_dir: Path) -> None:
    two = (ClassLabel(names=NAMES), [0, 1])
    table(0, 2, coarse=two, fine=two).save_to_disk(tmp_path / "two")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "none")
    for name, changes, words in (
        ("two", {}, "has several columns for data.label_column: give one of coarse, fine"),
        ("two", {"label_column": "typo"}, "has no column typo, but id, image, coarse, fine: data.label_column must be one"),
        ("none", {}, "has no column of pictures, but text: name one by data.image_column="),
    ):
        with pytest.raises(UserError, match=words):
            module(tmp_path / name, cache_dir, **changes).listing()
    assert module(tmp_path / "two", cache_dir, label_column="fine").listing().class_names == tuple(NAMES)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot be loaded .* give a folder of save_to_disk or of parquet files"):
        module(tmp_path / "empty", cache_dir).listing()

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"data.name=owner/name cannot be loaded .* check the name, or give a folder") as raised:
        module(None, cache_dir, name="owner/name").listing()
    assert "\n" not in str(raised.value)
    monkeypatch.setattr("flowergen.data.huggingface_datamodule.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'flowergen\[hub\]'"):
        module(None, cache_dir, name="owner/name").listing()


def test_a_repository_is_asked_for_by_name_and_subset(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: object) -> DatasetDict:
        asked.append(arguments)
        return DatasetDict(train=labelled(0, 40))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = module(None, cache_dir, name="owner/name", subset="small")
    data.setup()
    assert asked == [("owner/name", "small")]
    assert len(data.rows["train"]) == 32


def test_the_first_phase_asks_for_a_repository_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data=huggingface needs data.name=OWNER/NAME, a repository of the hub, or data.root=DIR"
    ):
        checked(["data=huggingface"])
    checked(["data=huggingface", "data.name=owner/name"])
    checked(["data=huggingface", f"data.root={tmp_path}"])


@pytest.mark.slow
def test_training_on_it(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    labelled(0, 60).save_to_disk(tmp_path / "set")
    own = [override for override in tiny_run if not override.startswith(("data.num_images", "data.num_classes"))]
    done = command("train", *own, "data=huggingface", f"data.root={tmp_path / 'set'}", "trainer.max_epochs=1",
                   f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "48 train, 6 val, 6 test pictures of 28 px, 2 classes" in done.stderr
    assert os.listdir(tmp_path / "set")
