"""Whether a generator repeats its training pictures.

A sample is taken for a copy where its nearest training picture is far nearer than the second nearest: a new picture has many
neighbours at about the same distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize";
Gu et al. 2023, arXiv:2310.02664, section 2). That needs a training set without near-duplicates, whose distances are alike. The
ratio's usual bound of 1/3 is held against one that is calibrated: the ratio that one held-out picture in a hundred falls below,
and held-out pictures are no copies. Other held-out pictures are the control of both.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from flowergen.data.image_datamodule import spread
from flowergen.metrics.nearest import Nearest, near_duplicates, two_nearest

LARGEST_PX = 64  # side at which pixels are compared: a copy need not have every pixel
COPY_RATIO = 1 / 3  # d1 / d2 below which a sample is a copy (Yoon et al. 2023)
QUANTILE = 0.01  # of held-out pictures' ratios, the calibrated bound
DUPLICATE_SHARE = 0.48  # of the usual distance between neighbours: two that are nearer count as one (docs/evaluation.md)
EQUAL = 1e-6  # a distance that only equal pictures are below
MEASURED_OF = 512  # pictures that say what is usual
CHUNK_SIZE = 1024  # pictures whose pixels are made smaller


class Neighbours(NamedTuple):
    """The nearest training pictures of N pictures.

    Attributes:
        row: (N, 2) positions among all training pictures.
        ratio: (N,) d1 / d2; 0 where d1 is 0, also where d2 is.
    """

    row: np.ndarray
    ratio: np.ndarray


def pixel_vectors(images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Pixels as vectors, made smaller with antialiasing to at most 64 px a side.

    Args:
        images: (M, 3, S, S) uint8, maybe a memory map.
        rows: (N,) which of them; None for all.

    Returns:
        (N, 3 s s) uint8, s = min(S, 64).
    """
    size = images.shape[-1]
    rows = np.arange(len(images)) if rows is None else rows
    if size <= LARGEST_PX:
        return np.asarray(images[rows]).reshape(len(rows), 3 * size**2)
    parts = [np.zeros((0, 3 * LARGEST_PX**2), np.uint8)]
    for first in range(0, len(rows), CHUNK_SIZE):
        x = torch.from_numpy(np.array(images[rows[first : first + CHUNK_SIZE]])).float()
        x = F.interpolate(x, (LARGEST_PX, LARGEST_PX), mode="bilinear", align_corners=False, antialias=True)
        parts.append(x.round().clamp(0, 255).to(torch.uint8).flatten(1).numpy())
    return np.concatenate(parts)


def mirrored(vectors: np.ndarray) -> np.ndarray:
    """The mirror images of ``pixel_vectors``."""
    side = math.isqrt(vectors.shape[1] // 3)
    return vectors.reshape(-1, 3, side, side)[..., ::-1].reshape(vectors.shape)


def with_mirror_images(vectors: np.ndarray, wanted: bool) -> list[np.ndarray]:
    """``pixel_vectors``, and their mirror images where training has shown those as well."""
    return [vectors, mirrored(vectors)] if wanted else [vectors]


def distinct(vectors: np.ndarray, mirror: bool) -> np.ndarray:
    """Which training pictures are left when near-duplicates are taken out.

    Args:
        vectors: (M, D) of ``pixel_vectors``.
        mirror: whether mirror images count as duplicates.

    Returns:
        (K,) rows, the first of each group, K >= 2 unless M < 2; all of them if M < 4.
    """
    if len(vectors) < 4:
        return np.arange(len(vectors))
    # the second nearest, of the other half: where each picture is there twice, the nearest is its duplicate
    usual = float(two_nearest([spread(vectors[::2], MEASURED_OF)], vectors[1::2]).distance[:, 1].median())
    closer_than = max(DUPLICATE_SHARE * usual, EQUAL)
    kept = np.flatnonzero(~near_duplicates(with_mirror_images(vectors, mirror), closer_than))
    return kept if len(kept) > 1 else np.arange(2)


def neighbours(variants: Sequence[np.ndarray], train: np.ndarray, kept: np.ndarray) -> Neighbours:
    """The two nearest training pictures.

    Args:
        variants: of the same N vectors, (N, D) each, see ``two_nearest``.
        train: (K, D) of the training pictures that are left.
        kept: (K,) their rows among all.
    """
    nearest: Nearest = two_nearest(variants, train)
    first, second = nearest.distance.double().numpy().T
    ratio = np.divide(first, second, out=np.zeros(len(first)), where=second > 0)
    return Neighbours(kept[nearest.index.numpy()], ratio)


def calibrated_ratio(held_out: np.ndarray) -> tuple[float, float]:
    """The bound below which at most one new picture in a hundred falls, or as few as so many pictures can tell.

    A new picture is below the k-th smallest of N with probability k / (N + 1), as each place among them is as likely.

    Args:
        held_out: (N,) ratios of held-out pictures.

    Returns:
        The bound, and that probability.
    """
    k = max(1, int(QUANTILE * (len(held_out) + 1)))
    return float(np.sort(held_out)[k - 1]), k / (len(held_out) + 1)


def copy_rate(ratio: np.ndarray, below: float) -> float:
    """The share of pictures that a bound takes for copies.

    Args:
        ratio: (N,) of the pictures.
        below: the bound.
    """
    return float((ratio < below).mean())


def worst(ratio: np.ndarray, num: int) -> np.ndarray:
    """Numbers of those with the smallest ratios, the smallest first; of equal ones the first."""
    return np.argsort(ratio, kind="stable")[:num]
