"""Detection of samples that copy training pictures.

A sample counts as a copy if its nearest training picture is much closer than the second nearest: a new picture has many
neighbours at about the same distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize";
Gu et al. 2023, arXiv:2310.02664, section 2). This requires removing near-duplicates from the training set, because their
distances are almost equal. The usual bound of 1/3 on the ratio is complemented by a calibrated one: the ratio that one held-out
picture in a hundred falls below, as held-out pictures are not copies. Other held-out pictures are the control for both bounds.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from flowergen.data.image_datamodule import evenly_spaced
from flowergen.data.progress_bar import with_progress_bar
from flowergen.metrics.nearest import near_duplicates, two_nearest

MAX_COMPARED_PX = 64  # largest side at which pixels are compared: a copy need not match in every pixel
COPY_RATIO = 1 / 3  # d1 / d2 below which a sample is a copy (Yoon et al. 2023)
QUANTILE = 0.01  # the calibrated bound is this quantile of the held-out pictures' ratios
DUPLICATE_SHARE = 0.48  # fraction of the usual distance between neighbours: closer pictures count as one (docs/evaluation.md)
IDENTICAL_DISTANCE = 1e-6  # only identical pictures are closer than this
NUM_FOR_DISTANCE = 512  # pictures used to estimate the usual distance
CHUNK_SIZE = 1024  # pictures downsampled at a time


class Neighbours(NamedTuple):
    """The two nearest training pictures of N pictures.

    Attributes:
        row: (N, 2) indices into all training pictures.
        ratio: (N,) d1 / d2; 0 if d1 is 0, even if d2 is 0 too.
    """

    row: np.ndarray
    ratio: np.ndarray


def compared_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (C, h, w) at which the pixels of pictures (C, H, W) are compared: h = min(H, 64) and w = min(W, 64)."""
    channels, height, width = shape
    return channels, min(height, MAX_COMPARED_PX), min(width, MAX_COMPARED_PX)


def pixel_vectors(images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Flatten pixels to vectors, after antialiased downsampling to at most 64 px a side.

    Args:
        images: (M, C, H, W) uint8, possibly a memory map.
        rows: (N,) indices of the pictures to use; None for all.

    Returns:
        (N, C h w) uint8, see ``compared_shape``.
    """
    shape = compared_shape(images.shape[1:])
    rows = np.arange(len(images)) if rows is None else rows
    if shape == images.shape[1:]:
        return np.asarray(images[rows]).reshape(len(rows), math.prod(shape))
    vectors = np.empty((len(rows), math.prod(shape)), np.uint8)
    for first in range(0, len(rows), CHUNK_SIZE):
        part = slice(first, first + CHUNK_SIZE)
        x = torch.from_numpy(np.array(images[rows[part]])).float()
        x = F.interpolate(x, shape[1:], mode="bilinear", align_corners=False, antialias=True)
        vectors[part] = x.round().clamp(0, 255).to(torch.uint8).flatten(1).numpy()
    return vectors


def mirrored(vectors: np.ndarray, width_px: int) -> np.ndarray:
    """Mirror vectors (N, C h w) of ``pixel_vectors`` horizontally; ``width_px`` is W of the pictures."""
    return vectors.reshape(-1, min(width_px, MAX_COMPARED_PX))[:, ::-1].reshape(vectors.shape)


def distinct(variants: Sequence[np.ndarray]) -> np.ndarray:
    """Return the training pictures that remain after removing near-duplicates.

    Args:
        variants: (M, D) vectors of the pictures and, if mirror images count as duplicates, of their mirror images.

    Returns:
        (K,) indices, the first of each group, K >= 2 unless M < 2; all of them if M < 4.
    """
    vectors = variants[0]
    if len(vectors) < 4:
        return np.arange(len(vectors))
    # use the second nearest in the other half: if every picture occurs twice, the nearest is its duplicate
    usual = float(two_nearest([evenly_spaced(vectors[::2], NUM_FOR_DISTANCE)], vectors[1::2]).distance[:, 1].median())
    closer_than = max(DUPLICATE_SHARE * usual, IDENTICAL_DISTANCE)

    def progress(blocks: Iterable[slice]) -> Iterable[slice]:
        return with_progress_bar("comparing", blocks, len(vectors) ** 2, size=lambda rows: rows.stop**2 - rows.start**2)

    kept = np.flatnonzero(~near_duplicates(variants, closer_than, progress))
    return kept if len(kept) > 1 else np.arange(2)


def neighbours(variants: Sequence[np.ndarray], train: np.ndarray, kept: np.ndarray) -> Neighbours:
    """Find the two nearest training pictures.

    Args:
        variants: variants of the same N vectors, (N, D) each, see ``two_nearest``.
        train: (K, D) the remaining training pictures.
        kept: (K,) their indices among all training pictures.
    """
    nearest = two_nearest(variants, train)
    first, second = nearest.distance.double().numpy().T
    ratio = np.divide(first, second, out=np.zeros(len(first)), where=second > 0)
    return Neighbours(kept[nearest.index.numpy()], ratio)


def calibrated_ratio(held_out: np.ndarray) -> tuple[float, float]:
    """Return the bound below which at most 1 % of new pictures fall, or the smallest ratio if N < 99.

    A new picture falls below the k-th smallest of N with probability k / (N + 1), since every rank is equally likely.

    Args:
        held_out: (N,) ratios of held-out pictures.

    Returns:
        The bound and that probability.
    """
    k = max(1, int(QUANTILE * (len(held_out) + 1)))
    return float(np.sort(held_out)[k - 1]), k / (len(held_out) + 1)


def copy_rate(ratio: np.ndarray, below: float) -> float:
    """Return the share of pictures, whose ratios d1 / d2 are (N,), that a bound classifies as copies."""
    return float((ratio < below).mean())


def indices_of_smallest(ratio: np.ndarray, num: int) -> np.ndarray:
    """Return the indices of the smallest ratios, in ascending order; ties keep their order."""
    return np.argsort(ratio, kind="stable")[:num]
