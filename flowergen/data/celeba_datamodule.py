"""Data module of CelebA or any folder of faces."""

from pathlib import Path
from typing import Any

from flowergen.data.celeba import list_celeba
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing


class CelebADataModule(ImageDataModule):
    """CelebA (Liu et al. 2015, arXiv:1411.7766): 202,599 aligned faces with 40 attributes, downloaded through torchvision.

    Args:
        root: the folder ``celeba``, existing or to be downloaded into; or any folder of faces.
        attribute: one of the 40 attributes, used as the label, or None.
        **options: see ``ImageDataModule``.
    """

    def __init__(self, root: str | Path, attribute: str | None, **options: Any):
        super().__init__(**options)
        self.root, self.attribute = Path(root), attribute

    def listing(self) -> Listing:
        """List all faces, downloading them first if they are missing."""
        return list_celeba(self.root, self.attribute)
