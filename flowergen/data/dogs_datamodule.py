"""Data module of dog pictures."""

import re
from dataclasses import replace

from flowergen.data.image_folder_datamodule import ImageFolderDataModule
from flowergen.data.listing import Listing

WORDNET_ID = re.compile(r"n\d{8}-")  # precedes the breed in folder names of Stanford Dogs, "n02085620-Chihuahua"


class DogsDataModule(ImageFolderDataModule):
    """A flat folder of dogs, optionally split by ``flowergen.split``, or Stanford Dogs (Khosla et al. 2011) with 120 breeds."""

    def listing(self) -> Listing:
        """List every picture below the folder; breed names omit the WordNet number."""
        listing = super().listing()
        return replace(listing, class_names=tuple(WORDNET_ID.sub("", name, count=1) for name in listing.class_names))
