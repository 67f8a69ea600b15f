"""Pictures: listing, reading, the cache, splits, the procedural flowers, and a LightningDataModule for each data set."""
