"""Real and generated pictures to evaluate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowergen.data.cache import cached_images
from flowergen.data.image_datamodule import ImageDataModule, evenly_spaced
from flowergen.data.listing import list_image_folder
from flowergen.errors import UserError, printable
from flowergen.evaluation.sampling import NO_CLASS, LatentSampler, pictures
from flowergen.picture_shape import PictureShape

NUM_HASHED = 256  # pictures whose pixels are hashed to represent all
MIN_PICTURES = 4  # pictures in a set: precision and recall use the third nearest neighbour


@dataclass(frozen=True)
class PictureSet:
    """A subset of a collection of pictures.

    Attributes:
        name: description, such as "test pictures".
        images: (M, C, H, W) uint8, the collection, possibly a memory map.
        labels: (M,) int64, -1 if unlabelled.
        rows: (N,) indices of the subset.
        key: identifies the pixels of the collection.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return (n, C, H, W) uint8 by position in this set."""
        return np.asarray(self.images[self.rows[np.asarray(index, dtype=np.int64)]])

    def subset(self, index: np.ndarray) -> "PictureSet":
        """Return the subset at these positions."""
        return replace(self, rows=self.rows[index])


@dataclass(frozen=True)
class RealPictures:
    """Real pictures that generated pictures are compared with.

    Attributes:
        identity: hash of the files, their labels and which are held out.
        reference: pictures that generated ones should resemble, preferably held out.
        train: the generator's training pictures; None if unknown.
        calibration: held-out pictures that calibrate the copy test; None if there are none.
        mirrored: whether mirror images may have been used in training too.
        class_names: class names by label.
        note: a note for the metric card; empty if there is none.
        validation: held-out pictures of the same collection as ``train``, for the linear probe's accuracy; None if there are
            none.
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
        """Hash of some of the pictures after preprocessing; it changes if the same files are transformed differently."""
        pictures = self.train or self.reference
        return blake2b(pictures.at(evenly_spaced(np.arange(len(pictures)), NUM_HASHED)).tobytes(), digest_size=16).hexdigest()


def real_pictures_of(data: ImageDataModule, num: int | None, subset: str = "test") -> RealPictures:
    """Return the pictures of a run: held-out pictures as the reference, validation pictures for calibration.

    Args:
        data: the data module, set up.
        num: maximum size of the reference, spread over the subset; None for all.
        subset: ``test``, or ``val`` during training, when half of it is the reference and the other half calibrates.

    Raises:
        UserError: there are too few pictures for a distance.
    """

    def subset_of(name: str, rows: np.ndarray) -> PictureSet:
        return PictureSet(name, data.pictures.images, data.pictures.labels, rows, data.pixels)

    train = subset_of("training pictures", data.rows["train"])
    val, test = subset_of("validation pictures", data.rows["val"]), subset_of("test pictures", data.rows["test"])
    note, reference, calibration = "", test, None if not len(val) else val
    if not data.held_out:
        note, reference, calibration = "training-set metric: nothing was held out (data.split=all)", train, None
    elif subset == "val" or not len(test):
        reference, calibration = _halves(val) if len(val) > 1 else (val, None)
        note = "no test pictures: half of the validation pictures are used instead" if subset == "test" else ""
    if num is not None and num < len(reference):
        reference = reference.subset(evenly_spaced(np.arange(len(reference)), num))
    validation, mirrored = val if len(val) else None, data.horizontal_flip
    return RealPictures(data.identity, enough(reference), train, calibration, mirrored, data.class_names, note, validation)


def real_pictures_in(reference: str, train: str | None, shape: PictureShape, cache_dir: Path) -> RealPictures:
    """Read folders of pictures in the same way as data sets.

    Args:
        reference: folder of the reference pictures.
        train: folder of the generator's training pictures, if known; half of the reference then calibrates.
        shape: (C, H, W) that they are fitted to.
        cache_dir: cache folder for decoded pictures.

    Raises:
        UserError: a folder has too few pictures, or they cannot be decoded.
    """
    real, names, key = picture_folder(reference, "reference", shape, cache_dir)
    if train is None:
        return RealPictures(key, enough(real), None, None, True, names)
    trained, train_names, train_key = picture_folder(train, "train", shape, cache_dir)
    if names and train_names and list(names) != list(train_names):
        raise UserError("reference= and train= have different class folders: give folders with the same classes, or without")
    if train_key == key:
        note = "training-set metric: the reference pictures are the training pictures"
        return RealPictures(key, enough(trained), trained, None, True, train_names, note)
    first, second = _halves(real)
    note = "every second reference picture calibrates the copy test and is not a reference"
    return RealPictures(f"{key}/{train_key}", enough(first), trained, second, True, train_names, note)


def picture_folder(folder: str, key: str, shape: PictureShape, cache_dir: Path) -> tuple[PictureSet, Sequence[str], str]:
    """Return all pictures of a folder, its class names, and a hash of pictures and labels.

    Args:
        folder: folder of pictures, flat or with one folder per class.
        key: command-line key of the folder, for error messages.
        shape: (C, H, W) that they are fitted to.
        cache_dir: cache folder for decoded pictures.

    Raises:
        UserError: the folder has no pictures, or they cannot be decoded.
    """
    listing = list_image_folder(Path(folder), key)
    cached = cached_images(listing, "folder", shape, cache_dir, instead="")
    labels = listing.labels[cached.rows]
    content = repr((cached.digests.tolist(), labels.tolist())).encode()
    name = f"pictures of {printable(Path(folder).name)}"
    pictures = PictureSet(name, cached.images, labels, np.arange(len(labels)), cached.key)
    return pictures, listing.class_names, blake2b(content, digest_size=16).hexdigest()


def enough(pictures: PictureSet) -> PictureSet:
    """Return the pictures if there are enough for precision and recall, else raise a UserError."""
    if len(pictures) < MIN_PICTURES:
        raise UserError(f"{len(pictures)} {pictures.name} are too few to evaluate with: give at least {MIN_PICTURES}")
    return pictures


def repeated(values: np.ndarray, num: int) -> np.ndarray:
    """Return (num,) values, repeating each equally often; an incomplete last round is evenly spread over the values."""
    rounds, rest = divmod(num, len(values))
    return np.concatenate([np.tile(values, rounds), evenly_spaced(values, rest)])


def _halves(pictures: PictureSet) -> tuple[PictureSet, PictureSet]:
    every = np.arange(len(pictures))
    return pictures.subset(every[::2]), pictures.subset(every[1::2])


class Generated(Protocol):
    """Generated pictures, accessed by number.

    Attributes:
        labels: (N,) int64 intended classes, -1 for none.
        picture_shape: (C, H, W).
        description: their source, for the card.
    """

    labels: Tensor
    picture_shape: PictureShape
    description: str

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """Yield (n, C, H, W) uint8 from number ``first`` to the end."""

    def at(self, index: Sequence[int]) -> np.ndarray:
        """Return (n, C, H, W) uint8 for these numbers."""


class Sampled:
    """Pictures drawn from a model.

    Args:
        sampler: draws the latents.
        labels: (N,) int64 classes of all samples.
        batch_size: samples per batch.
        halve: halve the batch size if a batch does not fit into GPU memory.
    """

    def __init__(self, sampler: LatentSampler, labels: Tensor, batch_size: int, halve: bool):
        self.sampler, self.labels, self.batch_size, self.halve = sampler, labels, batch_size, halve
        self.description, self.picture_shape = sampler.description, sampler.model.picture_shape

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


class PicturesFromFiles:
    """Pictures from files of any origin.

    Args:
        pictures: all of the pictures.
        names: names of their class folders.
        real_names: class names of the real pictures; classes are matched by name.
        batch_size: pictures per batch.
    """

    def __init__(self, pictures: PictureSet, names: Sequence[str], real_names: Sequence[str], batch_size: int):
        self.pictures, self.batch_size, self.description = pictures, batch_size, pictures.name
        self.picture_shape = PictureShape(*pictures.images.shape[1:])
        label_of = {name: label for label, name in enumerate(real_names)}
        mapped = np.array([*(label_of.get(name, NO_CLASS) for name in names), NO_CLASS])  # the last entry is for label -1
        self.labels = torch.from_numpy(mapped[pictures.labels[pictures.rows]])

    def batches(self, first: int) -> Iterator[np.ndarray]:
        """See ``Generated``."""
        for start in range(first, len(self.pictures), self.batch_size):
            yield self.at(range(start, min(start + self.batch_size, len(self.pictures))))

    def at(self, index: Sequence[int]) -> np.ndarray:
        """See ``Generated``."""
        return self.pictures.at(index)


def to_uint8(x: Tensor) -> np.ndarray:
    """Convert (N, C, H, W) in [0, 1] to uint8, as in an image file."""
    return x.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
