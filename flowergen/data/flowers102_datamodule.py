"""Oxford 102 Flowers."""

from pathlib import Path
from typing import Any

from flowergen.data.flowers102 import list_flowers102
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing


class Flowers102DataModule(ImageDataModule):
    """Nilsback & Zisserman 2008, 8,189 photographs of 102 flowers, through torchvision's loader and download.

    Args:
        root: the folder that holds, or will hold, ``flowers-102/``.
        segmented: with a plain background, by the official segmentations.
        **options: see ``ImageDataModule``.
    """

    def __init__(self, root: str | Path, segmented: bool, **options: Any):
        super().__init__(**options)
        self.root, self.segmented = Path(root), segmented

    def listing(self) -> Listing:
        """All 8,189 pictures, downloaded if they are not there."""
        return list_flowers102(self.root, segmented=self.segmented)
