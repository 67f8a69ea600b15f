"""Data module of landscapes."""

from flowergen.data.image_folder_datamodule import ImageFolderDataModule
from flowergen.data.listing import SPLIT_FOLDER_NAMES, Listing
from flowergen.errors import UserError, printable


class LandscapesDataModule(ImageFolderDataModule):
    """Training, validation and testing folders that contain class folders, as in Kaggle's "Landscape Classification"."""

    def listing(self) -> Listing:
        """List every picture below the split's folders.

        Raises:
            UserError: there are no such folders and the split requires them.
        """
        listing = super().listing()
        if listing.subsets is None and self.split in ("auto", "official"):
            raise UserError(
                f"data.root={printable(str(self.root))} has no training folder beside a validation or testing folder, which "
                f"would be called {SPLIT_FOLDER_NAMES}; data.split=stratified does not need them"
            )
        return listing
