"""Listing, reading, caching and splitting pictures, procedural flowers, and a LightningDataModule for each data set."""

from flowergen.data.split_folders import FolderSplit, split_dataset

__all__ = ["FolderSplit", "split_dataset"]
