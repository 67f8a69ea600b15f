"""Data module of any folder of pictures."""

from pathlib import Path
from typing import Any

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing, list_image_folder


class ImageFolderDataModule(ImageDataModule):
    """A flat folder or one with class folders, at any depth; train, val and test folders are recognised.

    Args:
        root: the folder.
        **options: see ``ImageDataModule``.
    """

    def __init__(self, root: str | Path, **options: Any):
        super().__init__(**options)
        self.root = Path(root)

    def listing(self) -> Listing:
        """List every picture below the folder."""
        return list_image_folder(self.root)
