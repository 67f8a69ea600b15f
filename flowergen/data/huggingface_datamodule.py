"""Data module of pictures of the Hugging Face hub, or on disk in its formats."""

from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing, digest_of, subset_named
from flowergen.data.reading import UnreadablePicture, bytes_of, read_rgb
from flowergen.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceDataModule(ImageDataModule):
    """A data set that the library ``datasets`` reads; splits called train, validation and test are recognised.

    Args:
        name: name of the repository, ``OWNER/NAME``; with ``root``, any name.
        root: a folder written by ``save_to_disk``, or of parquet files as in a repository; None for the hub.
        subset: configuration of the repository; None if it has one.
        image_column: the column of pictures; ``auto`` for the only one.
        label_column: the column of classes; ``auto`` for the only one of type ``ClassLabel``, if any; ``none``.
        **options: see ``ImageDataModule``.
    """

    def __init__(
        self, name: str, root: str | Path | None, subset: str | None, image_column: str, label_column: str, **options: Any
    ):
        super().__init__(name=name.replace("/", "--"), **options)
        self.repository, self.root, self.subset = name, Path(root) if root else None, subset
        self.image_column, self.label_column = image_column, label_column

    def listing(self) -> Listing:
        """List the rows of all splits.

        Raises:
            UserError: the data set cannot be loaded, there are no pictures, or the columns are not unique or unknown.
        """
        where = f"data.root={printable(str(self.root))}" if self.root else f"data.name={self.repository}"
        if find_spec("datasets") is None:
            raise UserError(f"{where} needs the package datasets: pip install 'flowergen[hub]'")
        return list_splits(self._splits(where), self.image_column, self.label_column, where)

    def _splits(self, where: str) -> "dict[str, Dataset]":
        """Load all splits, downloading them if necessary. ``datasets`` 4 executes no code of a repository."""
        import datasets  # slow to import

        root = self.root
        try:
            if root is None:
                dataset = datasets.load_dataset(self.repository, self.subset)
            elif (root / "dataset_dict.json").exists() or (root / "state.json").exists():
                dataset = datasets.load_from_disk(str(root))
            else:
                dataset = datasets.load_dataset(str(root), self.subset)
        except Exception as error:  # datasets, huggingface_hub, pyarrow and the file system raise various exceptions
            other = "check the name, or give a folder by data.root="
            if root is not None:
                other = "give a folder of save_to_disk or of parquet files"
            raise UserError(f"{where} cannot be loaded ({type(error).__name__}: {one_line(error)[:200]}): {other}") from error
        return {"train": dataset} if isinstance(dataset, datasets.Dataset) else dict(dataset)


def list_splits(splits: "dict[str, Dataset]", image_column: str, label_column: str, where: str) -> Listing:
    """List the pictures of a data set.

    Args:
        splits: splits by name. If one is called train and another validation or test, the others are left out.
        image_column, label_column: see ``HuggingFaceDataModule``.
        where: the option that names the data set, for errors.

    Raises:
        UserError: there are no pictures, or the columns are not unique or unknown.
    """
    import datasets

    known = {name: subset for name in splits if (subset := subset_named(name))}
    own = "train" in known.values() and len(set(known.values())) > 1
    chosen = sorted(known if own else splits)
    features = splits[chosen[0]].features
    image = _column(features, datasets.Image, image_column, "image_column", where)
    if image is None:
        raise UserError(f"{where} has no column of pictures, but {', '.join(features)}: name one by data.image_column=")
    label = None if label_column == "none" else _column(features, datasets.ClassLabel, label_column, "label_column", where)
    parts = {name: splits[name].cast_column(image, datasets.Image(decode=False)) for name in chosen}
    rows = [(name, row) for name, part in parts.items() for row in range(len(part))]
    if not rows:
        raise UserError(f"{where} contains no pictures")
    values: list[Any] = [None] * len(rows) if label is None else [value for part in parts.values() for value in part[label]]
    class_names: list[str] = []
    if label is not None and isinstance(features[label], datasets.ClassLabel):
        class_names = list(features[label].names)
    elif label is not None:  # numbers or texts: each value is a class
        distinct = sorted({value for value in values if value is not None}, key=lambda v: (str(type(v)), v))
        class_names = [str(value) for value in distinct]
        label_of = {value: number for number, value in enumerate(distinct)}
        values = [label_of.get(value) for value in values]
    fingerprint = blake2b(repr([(name, splits[name]._fingerprint, image, label) for name in chosen]).encode(), digest_size=16)

    def read(index: int) -> tuple[np.ndarray, str]:
        name, row = rows[index]
        entry = parts[name][row][image]
        if entry is None:
            raise UnreadablePicture("no picture in this row")
        content = entry["bytes"] if entry["bytes"] is not None else bytes_of(Path(entry["path"]))
        return read_rgb(content), digest_of(content)

    return Listing(
        names=tuple(f"{name}/{row:06d}" for name, row in rows),
        labels=np.array([-1 if value is None else value for value in values], dtype=np.int64),
        class_names=tuple(map(printable, class_names)),
        subsets=np.array([known[name] for name, _ in rows]) if own else None,
        fingerprint=fingerprint.hexdigest(),
        read=read,
    )


def _column(features: Any, kind: type, column: str, key: str, where: str) -> str | None:
    """Return the column that was given, or the only one of a kind; None if there is none.

    Raises:
        UserError: the column does not exist, or there are several.
    """
    if column != "auto":
        if column not in features:
            raise UserError(f"{where} has no column {column}, but {', '.join(features)}: data.{key} must be one of them")
        return column
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        raise UserError(f"{where} has several columns for data.{key}: give one of {', '.join(found)}")
    return found[0] if found else None
