"""Data module of the built-in procedural flowers."""

import hashlib
from typing import Any

import numpy as np

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing
from flowergen.data.procedural import DRAWING_VERSION, class_names, draw_flower


class ProceduralDataModule(ImageDataModule):
    """Class-conditional flowers, a function of (seed, index) alone, drawn as squares of the longer side.

    Args:
        num_images: number of pictures.
        num_classes: 1 to 102; picture i has class i mod num_classes.
        drawing_seed: seed of the drawings, separate from the run's seed so that all runs see the same pictures.
        **options: see ``ImageDataModule``.
    """

    def __init__(self, num_images: int, num_classes: int, drawing_seed: int, **options: Any):
        super().__init__(**options)
        self.num_images, self.num_classes, self.drawing_seed = num_images, num_classes, drawing_seed

    def listing(self) -> Listing:
        """List the requested number of pictures without drawing any."""

        _, height, width = self.picture_shape

        def read(index: int) -> tuple[np.ndarray, str]:
            image = draw_flower(self.drawing_seed, index, max(height, width), self.num_classes)
            return image, f"{index:06d}"

        identity = f"{DRAWING_VERSION}/{self.drawing_seed}/{self.num_images}/{self.num_classes}"
        return Listing(
            names=tuple(f"flower_{index:06d}" for index in range(self.num_images)),
            labels=np.arange(self.num_images, dtype=np.int64) % self.num_classes,
            class_names=class_names(self.num_classes),
            subsets=None,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
            read=read,
        )
