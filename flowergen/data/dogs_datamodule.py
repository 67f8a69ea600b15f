"""Dogs."""

import re
from dataclasses import replace

from flowergen.data.image_folder_datamodule import ImageFolderDataModule
from flowergen.data.listing import Listing

WORDNET_ID = re.compile(r"n\d{8}-")  # before the breed in Stanford Dogs' folders, "n02085620-Chihuahua"


class DogsDataModule(ImageFolderDataModule):
    """A flat folder of dogs, split by ``flowergen.split`` or not, or Stanford Dogs (Khosla et al. 2011) with its 120 breeds."""

    def listing(self) -> Listing:
        """Every picture below the folder; breeds without their WordNet number."""
        listing = super().listing()
        return replace(listing, class_names=tuple(WORDNET_ID.sub("", name, count=1) for name in listing.class_names))
