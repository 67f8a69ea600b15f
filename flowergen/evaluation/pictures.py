"""Pictures to be measured: real ones, and those of whatever made them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowergen.data.cache import cached_images
from flowergen.data.image_datamodule import ImageDataModule, spread
from flowergen.data.listing import list_image_folder, printable
from flowergen.errors import UserError
from flowergen.evaluation.sampling import NO_CLASS, Sampler, pictures

HASHED = 256  # pictures whose pixels stand for those of all
FEWEST = 4  # pictures in a set: precision and recall go to the third neighbour


@dataclass(frozen=True)
class PictureSet:
    """Some pictures of a collection.

    Attributes:
        name: what they are, in words: "test pictures".
        images: (M, 3, S, S) uint8, the collection, maybe a memory map.
        labels: (M,) int64, -1 where unlabelled.
        rows: (N,) which of them.
        key: stands for the pixels of the collection.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, 3, S, S) uint8, by position in this set."""
        return np.asarray(self.images[self.rows[np.asarray(index, dtype=np.int64)]])

    def subset(self, index: np.ndarray) -> "PictureSet":
        """Those at these positions."""
        return replace(self, rows=self.rows[index])


@dataclass(frozen=True)
class RealPictures:
    """What generated pictures are held against.

    Attributes:
        identity: hash of the files, their labels and which are held out.
        reference: what generated pictures should be like, at best held out.
        train: what the generator was trained on; None if unknown.
        calibration: held-out pictures that say what is no copy; None where there are none.
        mirrored: whether mirror images may have been trained on too.
        class_names: by label.
        note: what a reader must know about them; empty for nothing.
        validation: held-out pictures of the same collection as ``train``, for the linear probe's accuracy; None likewise.
    """

    identity: str
    reference: PictureSet
    train: PictureSet | None
    calibration: PictureSet | None
    mirrored: bool
    class_names: Sequence[str]
    note: str = ""
    validation: PictureSet | None = None

    @property
    def pixels(self) -> str:
        """Hash of some of the pictures as they are after reading: another transform of the same files gives another one."""
        pictures = self.train or self.reference
        return blake2b(pictures.at(spread(np.arange(len(pictures)), HASHED)).tobytes(), digest_size=16).hexdigest()


def real_pictures_of(data: ImageDataModule, num: int | None, subset: str = "test") -> RealPictures:
    """The pictures of a run: its held-out ones as the reference, the validation pictures to calibrate with.

    Args:
        data: set up.
        num: at most so many as the reference, spread over the subset; None for all.
        subset: ``test``, or ``val`` during training, when half of it is the reference and the other half calibrates.

    Raises:
        UserError: there are fewer pictures than a distance needs.
    """

    def some(name: str, rows: np.ndarray) -> PictureSet:
        return PictureSet(name, data.pictures.images, data.pictures.labels, rows, data.pixels)

    train = some("training pictures", data.rows["train"])
    val, test = some("validation pictures", data.rows["val"]), some("test pictures", data.rows["test"])
    note, reference, calibration = "", test, None if not len(val) else val
    if not data.held_out:
        note, reference, calibration = "training-set metric: nothing was held out (data.split=all)", train, None
    elif subset == "val" or not len(test):
        reference, calibration = _halves(val) if len(val) > 1 else (val, None)
        note = "no test pictures: half of the validation pictures stand in for them" if subset == "test" else ""
    identity, mirrored = data.identity, data.horizontal_flip
    reference, validation = enough(_at_most(reference, num)), val if len(val) else None
    return RealPictures(identity, reference, train, calibration, mirrored, data.class_names, note, validation)


def real_pictures_in(reference: str, train: str | None, size_px: int, cache_dir: Path) -> RealPictures:
    """Folders of pictures, read as data sets are.

    Args:
        reference: the folder that generated pictures are held against.
        train: the folder that the generator was trained on, if it is known; half of the reference calibrates then.
        size_px: S.
        cache_dir: of decoded pictures.

    Raises:
        UserError: there are too few pictures in a folder, or they do not decode.
    """
    real, names, key = picture_folder(reference, "reference", size_px, cache_dir)
    if train is None:
        return RealPictures(key, enough(real), None, None, True, names)
    trained, train_names, train_key = picture_folder(train, "train", size_px, cache_dir)
    if names and train_names and list(names) != list(train_names):
        raise UserError("reference= and train= have other class folders: give folders with the same ones, or without")
    if train_key == key:
        note = "training-set metric: the reference is what was learnt from"
        return RealPictures(key, enough(trained), trained, None, True, train_names, note)
    first, second = _halves(real)
    note = "every second reference picture calibrates the copy test and is no reference"
    return RealPictures(f"{key}/{train_key}", enough(first), trained, second, True, train_names, note)


def picture_folder(folder: str, key: str, size_px: int, cache_dir: Path) -> tuple[PictureSet, Sequence[str], str]:
    """All pictures of a folder, its class names, and a hash of both.

    Args:
        folder: of pictures, flat or with a folder for each class.
        key: of the command line that gave it, for errors.
        size_px: S.
        cache_dir: of decoded pictures.

    Raises:
        UserError: there are no pictures in it, or they do not decode.
    """
    listing = list_image_folder(Path(folder), key)
    cached = cached_images(listing, "folder", size_px, cache_dir, instead="")
    labels = listing.labels[cached.rows]
    content = repr((cached.digests.tolist(), labels.tolist())).encode()
    name = f"pictures of {printable(Path(folder).name)}"
    pictures = PictureSet(name, cached.images, labels, np.arange(len(labels)), cached.key)
    return pictures, listing.class_names, blake2b(content, digest_size=16).hexdigest()


def enough(pictures: PictureSet) -> PictureSet:
    """The same, if they are as many as precision and recall need.

    Raises:
        UserError: they are not.
    """
    if len(pictures) < FEWEST:
        raise UserError(f"{len(pictures)} {pictures.name} to evaluate with, and {FEWEST} are the fewest: give more")
    return pictures


def _at_most(pictures: PictureSet, num: int | None) -> PictureSet:
    if num is None or num >= len(pictures):
        return pictures
    return pictures.subset(spread(np.arange(len(pictures)), num))


def repeated(values: np.ndarray, num: int) -> np.ndarray:
    """(num,) of the values, each as often as the others; of a last, incomplete round those spread over them."""
    rounds, rest = divmod(num, len(values))
    return np.concatenate([np.tile(values, rounds), spread(values, rest)])


def _halves(pictures: PictureSet) -> tuple[PictureSet, PictureSet]:
    every = np.arange(len(pictures))
    return pictures.subset(every[::2]), pictures.subset(every[1::2])


class Generated(Protocol):
    """Generated pictures, by number.

    Attributes:
        labels: (N,) int64 classes that they should be of, -1 for none.
        image_size: their side S, in px.
        description: where they come from, for the card.
    """

    labels: Tensor
    image_size: int
    description: str

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """(n, 3, S, S) uint8, from a number on to the end."""

    def at(self, index: Sequence[int]) -> np.ndarray:
        """(n, 3, S, S) uint8, of these numbers."""


class Sampled:
    """Drawn from a model.

    Args:
        sampler: draws.
        labels: (N,) int64 of all of them.
        batch_size: at a time.
        halve: where a batch does not fit the GPU's memory, go on with half as many.
    """

    def __init__(self, sampler: Sampler, labels: Tensor, batch_size: int, halve: bool):
        self.sampler, self.labels, self.batch_size, self.halve = sampler, labels, batch_size, halve
        self.description, self.image_size = sampler.description, sampler.model.image_size

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """See ``Generated``."""
        for _, x in pictures(self.sampler, self.labels, self.batch_size, self.halve, first):
            yield to_uint8(x)

    @torch.inference_mode()
    def at(self, index: Sequence[int]) -> np.ndarray:
        """See ``Generated``."""
        device = self.sampler.model.device
        z = self.sampler.draw(index, self.labels[torch.as_tensor(index)])
        return to_uint8(torch.cat([self.sampler.model.decode(part.to(device)).cpu() for part in z.split(self.batch_size)]))


class Given:
    """Files of whatever made them.

    Args:
        pictures: all of them.
        names: of their class folders.
        real_names: of the real pictures' classes; the same names are the same classes.
        batch_size: at a time.
    """

    def __init__(self, pictures: PictureSet, names: Sequence[str], real_names: Sequence[str], batch_size: int):
        self.pictures, self.batch_size, self.description = pictures, batch_size, pictures.name
        self.image_size = pictures.images.shape[-1]
        label_of = {name: label for label, name in enumerate(real_names)}
        mapped = np.array([*(label_of.get(name, NO_CLASS) for name in names), NO_CLASS])  # the last for -1
        self.labels = torch.from_numpy(mapped[pictures.labels[pictures.rows]])

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """See ``Generated``."""
        for start in range(first, len(self.pictures), self.batch_size):
            yield self.at(range(start, min(start + self.batch_size, len(self.pictures))))

    def at(self, index: Sequence[int]) -> np.ndarray:
        """See ``Generated``."""
        return self.pictures.at(index)


def to_uint8(x: Tensor) -> np.ndarray:
    """(N, 3, S, S) in [0, 1] -> uint8, as they would be in a file."""
    return x.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
