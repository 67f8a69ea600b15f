"""Data module of Oxford 102 Flowers."""

from pathlib import Path
from typing import Any

from flowergen.data.flowers102 import list_flowers102
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing


class Flowers102DataModule(ImageDataModule):
    """8,189 photographs of 102 flowers (Nilsback & Zisserman 2008), loaded and downloaded through torchvision.

    Args:
        root: the folder that contains, or will contain, ``flowers-102/``.
        segmented: use a plain background, from the official segmentations.
        **options: see ``ImageDataModule``.
    """

    def __init__(self, root: str | Path, segmented: bool, **options: Any):
        super().__init__(**options)
        self.root, self.segmented = Path(root), segmented

    def listing(self) -> Listing:
        """List all 8,189 pictures, downloading them first if they are missing."""
        return list_flowers102(self.root, segmented=self.segmented)
