"""Base LightningDataModule of all data sets: cached pictures, a split, resumable batches, augmentation on the device."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from flowergen.data.augmentation import NUM_DRAWS, color_jitter, crop_boxes, jitter_factors, resized_crop
from flowergen.data.batch import Batch, LatentBatch
from flowergen.data.cache import cached_images
from flowergen.data.listing import Listing
from flowergen.data.order import SequentialOrder, TrainingOrder
from flowergen.data.reading import Fit
from flowergen.data.resident import MEMORY_FRACTION, RowNumbers, copy_to_device
from flowergen.data.splits import complete_subsets, stratified_split
from flowergen.data.streaming import PrefetchingLoader, streamed_images
from flowergen.errors import UserError
from flowergen.lightning_internals import batches_begun
from flowergen.picture_shape import ImageSize, PictureShape
from flowergen.randomness import generator

log = logging.getLogger(__name__)


class CachedPictures(Dataset[Batch]):
    """Dataset that returns whole batches from the memory-mapped array.

    Args:
        images: (M, C, H, W) uint8.
        labels: (M,) int64.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: list[int]) -> Batch:
        index = np.asarray(rows, dtype=np.int64)
        return Batch(torch.from_numpy(self.images[index]), torch.from_numpy(self.labels[index]), torch.from_numpy(index))


class CachedLatents(Dataset[LatentBatch]):
    """Dataset that returns whole batches of posteriors.

    Args:
        mean, logvar, features: see ``ImageDataModule.use_latents``.
        labels: (M,) int64.
    """

    def __init__(self, mean: np.ndarray, logvar: np.ndarray, labels: np.ndarray, features: np.ndarray | None):
        self.mean, self.logvar, self.labels = mean, logvar, labels
        self.features = np.empty((*mean.shape[:2], 0, 1, 1), dtype=np.float16) if features is None else features

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> LatentBatch:
        index = np.asarray(rows, dtype=np.int64)
        mean, logvar, features = (torch.from_numpy(array[index]) for array in (self.mean, self.logvar, self.features))
        return LatentBatch(mean, logvar, torch.from_numpy(self.labels[index]), torch.from_numpy(index), features)


class ImageDataModule(LightningDataModule, ABC):
    """Decodes a collection once, splits it, and yields batches.

    A custom data set only overrides ``listing``.

    Args:
        name: name of the data set, used in the cache's folder name and in messages.
        image_size: size of the pictures in px: the side of a square, or height and width.
        batch_size: pictures per optimiser step, over all devices.
        split: ``stratified`` 80/10/10, ``official`` (the data set's own), ``auto`` (official if there is one, else
            stratified) or ``all`` (nothing held out).
        split_seed: seed of the stratified split, separate from ``seed`` so that runs with different seeds stay comparable.
        horizontal_flip: mirror half of the training pictures, redrawn every epoch.
        on_corrupt: ``error`` stops at files that cannot be decoded, ``skip`` leaves them out.
        cache_dir: folder of the decoded pictures.
        seed: seed of data order, flips, crops and colour jitter.
        random_resized_crop: smallest and largest fraction of the picture's area to crop, redrawn every epoch; None for no
            crops.
        color_jitter: strength s in [0, 1] of the jitter of brightness, contrast, saturation and hue, redrawn every epoch; 0
            for none.
        decode: ``once`` into a cache on the disk, or ``stream`` on every access.
        device_resident: keep the collection on the device; ``auto`` does so on a GPU if it takes at most a third of the free
            memory.
        channels: 3 for colour, 1 for grey.
        fit: ``crop`` scales pictures to cover this size and crops the centre; ``pad`` scales them to fit inside, in the centre
            of black borders.
    """

    def __init__(
        self,
        name: str,
        image_size: ImageSize,
        batch_size: int,
        split: Literal["auto", "official", "stratified", "all"],
        split_seed: int,
        horizontal_flip: bool,
        on_corrupt: Literal["error", "skip"],
        cache_dir: str | Path,
        seed: int,
        random_resized_crop: Sequence[float] | None = None,
        color_jitter: float = 0,
        decode: Literal["once", "stream"] = "once",
        device_resident: bool | Literal["auto"] = "auto",
        channels: Literal[1, 3] = 3,
        fit: Fit = "crop",
    ):
        super().__init__()
        self.name: str = name
        self.picture_shape, self.fit, self.batch_size = PictureShape.of(image_size, channels), fit, batch_size
        self.split, self.split_seed, self.seed = split, split_seed, seed
        self.horizontal_flip, self.on_corrupt, self.cache_dir = horizontal_flip, on_corrupt, Path(cache_dir)
        self.random_resized_crop, self.color_jitter = random_resized_crop, color_jitter
        self.decode, self.device_resident = decode, device_resident
        self.class_names: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()  # paths of the pictures below the root
        self._draws: dict[str, tuple[int, torch.Tensor]] = {}
        self._whole: tuple[Dataset[Any], Batch | LatentBatch | None] | None = None
        self._copies: torch.cuda.Stream | None = None

    # -- to be overridden

    @abstractmethod
    def listing(self) -> Listing:
        """List the pictures of this data set without decoding any."""

    # -- setup

    def setup(self, stage: str | None = None) -> None:
        """Open the cache, building it if necessary, and split the data. Repeated calls do nothing.

        Raises:
            UserError: the data is unavailable, or too small to train or validate on.
        """
        if hasattr(self, "pictures"):
            return
        listing = self.listing()
        images = streamed_images if self.decode == "stream" else cached_images
        cached = images(listing, self.name, self.picture_shape, self.cache_dir, self.on_corrupt, fit=self.fit)
        self.class_names = listing.class_names
        self.names = tuple(listing.names[row] for row in cached.rows)
        self.pictures = CachedPictures(cached.images, listing.labels[cached.rows])
        self.pixels = cached.key  # hash that identifies the pixels of all pictures
        self.source: Dataset[Any] = self.pictures
        subsets = self._subsets(listing, cached.rows, cached.digests)
        identity = hashlib.blake2b(digest_size=16)
        for part in (cached.digests, listing.labels[cached.rows], subsets):
            identity.update(repr(part.tolist()).encode())
        self.identity = identity.hexdigest()
        self.rows = {subset: np.flatnonzero(subsets == subset) for subset in ("train", "val", "test")}
        self.check_sizes()

    def use_latents(self, mean: np.ndarray, logvar: np.ndarray, features: np.ndarray | None = None) -> None:
        """Yield ``LatentBatch`` from now on.

        Args:
            mean: (M, F, C, h, w) float32, for all pictures, see ``LatentBatch``; F = 2 if they are flipped.
            logvar: log variance, shaped like ``mean``.
            features: (M, F, K, h', w') float16, for all pictures, or None.
        """
        self.source = CachedLatents(mean, logvar, self.pictures.labels, features)

    @property
    def held_out(self) -> bool:
        """True if validation pictures are excluded from training."""
        return self.split != "all"

    def _subsets(self, listing: Listing, rows: np.ndarray, digests: np.ndarray) -> np.ndarray:
        labels = listing.labels[rows]
        if self.split == "all":
            return np.full(len(rows), "train")
        if self.split == "official" and listing.subsets is None:
            raise UserError(
                f"data.split=official: {self.name} has no train and test folders of its own; use data.split=stratified"
            )
        if self.split == "stratified" or listing.subsets is None:
            return stratified_split(labels, digests, self.split_seed)
        if self.split == "official" and {"train", "val", "test"} <= set(listing.subsets):
            # kept as published, for comparison with papers; "auto" moves such copies out of train
            leaked = np.isin(digests[listing.subsets[rows] == "train"], digests[listing.subsets[rows] != "train"]).sum()
            if leaked:
                log.warning(f"data.split=official: {leaked} training pictures have byte-identical copies that are held out")
            return listing.subsets[rows]
        return complete_subsets(listing.subsets[rows], labels, digests, self.split_seed)

    def check_sizes(self) -> None:
        """Check that there are enough pictures to fill a batch and to validate on.

        Raises:
            UserError: there are too few.
        """
        num_train = len(self.rows["train"])
        if num_train < self.batch_size:
            raise UserError(
                f"{num_train} training pictures do not fill one batch of {self.batch_size}: "
                f"set data.batch_size={max(1, num_train)} or less, or add pictures"
            )
        if self.held_out and not len(self.rows["val"]):
            raise UserError(
                f"no validation picture: {num_train} pictures are too few to hold out a tenth; "
                "add pictures, or train on all of them with data.split=all"
            )

    # -- batches

    def train_dataloader(self) -> DataLoader:
        """Return a loader of the training pictures; a resumed run continues at its position in the epoch."""
        trainer = self.trainer
        assert trainer is not None
        devices = trainer.world_size
        accumulate = getattr(trainer.lightning_module, "accumulation_steps", trainer.accumulate_grad_batches)
        if self.batch_size % (devices * accumulate):
            raise UserError(
                f"data.batch_size={self.batch_size} counts the pictures of an optimiser step and must be a multiple of "
                f"{devices} device(s) x trainer.accumulate_grad_batches={accumulate}"
            )
        order = TrainingOrder(self.rows["train"], self.batch_size, self.seed, trainer.global_rank, devices, accumulate)
        order.resume_at(trainer.current_epoch, batches_begun(trainer))
        return self._loader(order)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return a loader of the validation pictures, or of a tenth of the training pictures if nothing is held out.

        For a model that compares validation with training, a second loader has as many training pictures as the first has
        validation pictures.
        """
        assert self.trainer is not None
        rows = self.rows["val"] if self.held_out else self.rows["train"][::10]
        if len(rows) < self.trainer.world_size:
            raise UserError(
                f"{len(rows)} validation pictures are too few for {self.trainer.world_size} devices: "
                "use fewer with trainer.devices=, or switch validation off with trainer.limit_val_batches=0"
            )
        sets = [rows]
        if self.held_out and getattr(self.trainer.lightning_module, "compares_with_training", False):
            sets.append(evenly_spaced(self.rows["train"], len(rows)))
        rank, devices = self.trainer.global_rank, self.trainer.world_size
        loaders = [self._loader(SequentialOrder(rows, self.batch_size, rank, devices)) for rows in sets]
        return loaders if len(loaders) > 1 else loaders[0]

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the test pictures, in order.

        Raises:
            UserError: nothing is held out.
        """
        if not len(self.rows["test"]):
            raise UserError(f"{self.name} has no test pictures: nothing was held out (data.split={self.split})")
        return self._loader(SequentialOrder(self.rows["test"], self.batch_size))

    def _loader(self, order: TrainingOrder | SequentialOrder) -> DataLoader:
        # a batch is one read of a memory map, or only row numbers: worker processes would cost more than they save
        return (PrefetchingLoader if self._streams else DataLoader)(
            self.source if self._resident() is None else RowNumbers(),
            sampler=order,
            batch_size=None,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _streams(self) -> bool:
        return self.decode == "stream" and self.source is self.pictures  # cached latents need no decoding

    def _resident(self) -> Batch | LatentBatch | None:
        """Return the collection on the device, or None. Built lazily: the source is known only when loaders are requested."""
        if self.trainer is None or self.device_resident is False or self._streams:
            return None
        if self._whole is None or self._whole[0] is not self.source:
            self._whole = self.source, self._copied_to(self.trainer.strategy.root_device)
        return self._whole[1]

    def _copied_to(self, device: torch.device) -> Batch | LatentBatch | None:
        num_bytes = len(self.source) * sum(part.nbytes for part in self.source[[0]])  # type: ignore[arg-type]
        if self.device_resident == "auto":
            if device.type != "cuda":
                return None
            free, _ = torch.cuda.mem_get_info(device)
            if num_bytes > MEMORY_FRACTION * free:
                log.info(f"data.device_resident=auto: {num_bytes:,} bytes are too many for {device}, which has {free:,} free")
                return None
        try:
            whole = copy_to_device(self.source, device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{device} has no room for the collection's {num_bytes:,} bytes: set data.device_resident=false"
            ) from error
        log.info(f"the collection is stored on {device}, {num_bytes:,} bytes (data.device_resident)")
        return whole

    def teardown(self, stage: str) -> None:
        """Release the device memory."""
        self._whole = None

    # -- on the device

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy on a separate CUDA stream: on the model's stream, the copy would wait for the previous step.

        Lightning copies asynchronously, but on the model's stream, and does not prefetch if the loader has a length.
        """
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copies = self._copies or torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._copies):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        current.wait_stream(self._copies)
        for part in [moved] if isinstance(moved, torch.Tensor) else moved:
            part.record_stream(current)  # else its memory could be reused while the model reads it
        return moved

    def on_after_batch_transfer(self, batch: Batch | LatentBatch | torch.Tensor, dataloader_idx: int) -> Batch | LatentBatch:
        """Convert uint8 to float32 in [0, 1] and augment; for latents, select the picture's or its mirror image's.

        If the collection is on the device, the transferred batch consists of row numbers.
        """
        if isinstance(batch, torch.Tensor):
            assert self._whole is not None
            whole = self._whole[1]
            assert whole is not None
            batch = type(whole)(*(values[batch] for values in whole))
        training, rows, flips = self.trainer is not None and self.trainer.training, batch.index, None
        if training and self.horizontal_flip:
            flips = self._random_parameters("flip", rows, 1, lambda u: u[:, 0] < 0.5)
        if isinstance(batch, LatentBatch):
            variant = torch.zeros_like(batch.index) if flips is None else flips.long()
            place = torch.arange(len(variant), device=variant.device)
            chosen = {name: getattr(batch, name)[place, variant] for name in ("mean", "logvar", "features")}
            return batch._replace(**chosen)

        def mirrored(image: torch.Tensor) -> torch.Tensor:
            return image if flips is None else torch.where(flips[:, None, None, None], image.flip(-1), image)

        if training and (areas := self.random_resized_crop):
            boxes = self._random_parameters("crop", rows, NUM_DRAWS, lambda u: crop_boxes(u, areas, *self.picture_shape[1:]))
            image = mirrored(resized_crop(batch.image.float().div_(255), boxes))
        else:  # mirrored as uint8: the same values for a quarter of the memory traffic
            image = mirrored(batch.image).float().div_(255)
        if training and self.color_jitter:
            factors = self._random_parameters("color jitter", rows, NUM_DRAWS, lambda u: jitter_factors(u, self.color_jitter))
            image = color_jitter(image, factors)
        return batch._replace(image=image)

    def _random_parameters(
        self, purpose: str, rows: torch.Tensor, num_draws: int, parameters: Callable[[np.ndarray], np.ndarray]
    ) -> torch.Tensor:
        """Return (N, ...) random parameters, a function of (seed, epoch, picture).

        ``parameters`` maps uniform numbers, (M, num_draws), drawn for all M pictures at once, to their parameters, (M, ...).
        """
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        if purpose not in self._draws or self._draws[purpose][0] != epoch:
            u = generator(self.seed, epoch, purpose).random((len(self.pictures), num_draws))
            self._draws[purpose] = epoch, torch.from_numpy(parameters(u)).to(rows.device)
        return self._draws[purpose][1][rows]

    def validation_images(self, num: int) -> torch.Tensor:
        """Return validation pictures evenly spread over the set, or training pictures if nothing is held out.

        Returns:
            (num, C, H, W) float32 in [0, 1], fewer if the set is smaller.
        """
        chosen = evenly_spaced(self.rows["val"] if self.held_out else self.rows["train"], num)
        return self.pictures[chosen.tolist()].image.float().div(255)

    def summary(self) -> str:
        """Summarise the data set in one line."""
        sizes = ", ".join(f"{len(rows):,} {subset}" for subset, rows in self.rows.items() if len(rows))
        classes = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return f"{self.name}: {sizes} pictures of {self.picture_shape}, {classes}, split {self.split}"

    # -- checkpoints: order and flips are functions of (seed, epoch), so only the pictures must be unchanged

    def state_dict(self) -> dict[str, Any]:
        """Return a hash of the pictures, their labels and the split, and the class names."""
        return {"pictures": self.identity, "class_names": list(self.class_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume with other pictures.

        Raises:
            UserError: pictures, labels or split differ, so held-out pictures might be trained on.
        """
        if state_dict.get("pictures") != self.identity:
            raise UserError(
                f"the pictures, labels or split of {self.name} have changed since the run started: "
                "restore the old data, or start a new run"
            )


def evenly_spaced(rows: np.ndarray, num: int) -> np.ndarray:
    """Return at most ``num`` of the rows, evenly spread.

    Args:
        rows: (M,) rows.
        num: largest number of rows to return, at least 1.
    """
    return rows[np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int)]
