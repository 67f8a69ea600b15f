"""Listing and download of Oxford 102 Flowers."""

import os
from dataclasses import replace
from hashlib import blake2b
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError

import numpy as np

from flowergen.data.class_names import slug
from flowergen.data.download import downloading
from flowergen.data.listing import SUBSETS, Listing, listing_of
from flowergen.data.reading import UnreadablePicture
from flowergen.errors import UserError, printable

NUM_PICTURES = 8189  # Nilsback & Zisserman 2008
SEGMENTATIONS = "102segmentations.tgz"
# The segmentations are the photographs with a pure blue background, as JPEG files. The bound on its noise is a guess, wide
# enough for strong compression: the official files were not available.
SEGMENTED_OUT = (0, 0, 254)
MAX_DEVIATION = 64  # per channel
BACKGROUND = 0  # grey level of the plain background; white flowers are common, black ones are not


def list_flowers102(root: Path, download: bool = True, segmented: bool = False) -> Listing:
    """List Oxford 102 Flowers with its official split, loaded and downloaded through torchvision.

    Args:
        root: the folder that contains, or will contain, ``flowers-102/``.
        download: download missing files (330 MB).
        segmented: use a plain background, from the official segmentations, which must exist.

    Returns:
        8,189 pictures of 102 classes: 1,020 train, 1,020 val, 6,149 test.

    Raises:
        UserError: the pictures are missing or incomplete and could not be downloaded.
    """
    from torchvision.datasets import Flowers102  # imported here because it takes seconds

    folder = root / "flowers-102"
    source = (
        f"put {', '.join(file for file, _ in Flowers102._file_dict.values())} from {Flowers102._download_url_prefix} "
        f"into {printable(str(folder))} and run again, which unpacks them; data=procedural needs no download"
    )
    present = _present(root)
    if download and len(present) < NUM_PICTURES:
        try:
            with downloading(folder):  # all processes of a run get here at once
                Flowers102(root, download=True)
        except (OSError, RuntimeError, EOFError, TarError, HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"Oxford 102 Flowers could not be downloaded ({reason}): {source}") from error
        present = _present(root)
    if not present:
        raise UserError(f"Oxford 102 Flowers is not in {printable(str(root))}: {source}")
    if len(present) < NUM_PICTURES:
        raise UserError(
            f"{printable(str(folder / 'jpg'))} contains {len(present):,} of {NUM_PICTURES:,} pictures, "
            "as after an interrupted unpacking: delete that folder and run again"
        )
    names, labels, subsets = zip(*sorted(present), strict=True)
    pictures = listing_of(folder, names, labels, [slug(name) for name in Flowers102.classes], np.array(subsets))
    return _segmented(pictures, folder) if segmented else pictures


# ---- The files -------------------------------------------------------------------------------------------------------
def _present(root: Path) -> list[tuple[str, int, str]]:
    """Return (name, label, subset) of the existing pictures in the official lists; empty if the lists are missing."""
    from torchvision.datasets import Flowers102

    try:
        official = [
            (f"jpg/{file}", int(label), subset)
            for subset in SUBSETS
            for file, label in Flowers102(root, subset, loader=os.path.basename)
        ]
    except (RuntimeError, OSError):  # torchvision raises RuntimeError if a file is missing or damaged
        return []
    return [row for row in official if (root / "flowers-102" / row[0]).is_file()]


# ---- Segmentations ---------------------------------------------------------------------------------------------------
def _segmented(pictures: Listing, folder: Path) -> Listing:
    """Return the same pictures, split and classes with a plain background."""
    from torchvision.datasets import Flowers102

    names = [f"segmim/segmim_{name[-len('00001.jpg') :]}" for name in pictures.names]
    num_missing = sum(not (folder / name).is_file() for name in names)
    if num_missing:
        raise UserError(
            f"data.segmented=true: {num_missing:,} of {len(names):,} segmentations are not in {printable(str(folder))}: "
            f"unpack {Flowers102._download_url_prefix}{SEGMENTATIONS} there, which makes the folder segmim"
        )
    segmentations = listing_of(folder, names, pictures.labels.tolist(), pictures.class_names, None)
    both = f"{pictures.fingerprint}/{segmentations.fingerprint}/{SEGMENTED_OUT}/{MAX_DEVIATION}/{BACKGROUND}"

    def read(index: int) -> tuple[np.ndarray, str]:
        image, digest = pictures.read(index)  # (H, W, 3)
        segmented, _ = segmentations.read(index)
        if image.shape != segmented.shape:
            raise UnreadablePicture(f"its segmentation has another size, {segmented.shape[1]} x {segmented.shape[0]}")
        return without_background(image, segmented), digest

    return replace(pictures, fingerprint=blake2b(both.encode(), digest_size=16).hexdigest(), read=read)


def without_background(image: np.ndarray, segmented: np.ndarray) -> np.ndarray:
    """Replace the background, which is blue in the segmentation, by a plain grey level.

    Args:
        image: (H, W, 3) uint8.
        segmented: (H, W, 3) uint8, the same picture with a background of `SEGMENTED_OUT`, up to JPEG artefacts.

    Returns:
        (H, W, 3) uint8 with a background of the grey level `BACKGROUND`.
    """
    deviation = np.abs(segmented.astype(np.int16) - np.array(SEGMENTED_OUT, dtype=np.int16)).max(axis=-1)  # (H, W)
    return np.where((deviation <= MAX_DEVIATION)[..., None], np.uint8(BACKGROUND), image)  # (H, W, 3)
