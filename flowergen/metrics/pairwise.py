"""Distances between all rows of two large arrays, computed in blocks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 1024  # enough for a matrix product to run at full speed
BLOCK_VALUES = 2**25  # float32: 128 MiB
ROUNDING = 1e-5  # bound on a squared distance's error relative to its two squared norms; 1e-7 to 1e-6 in float32


def row_blocks(num: int, dim: int) -> Iterator[slice]:
    """Split `num` rows of `dim` values into blocks of bounded size."""
    size = max(1, min(BLOCK_ROWS, BLOCK_VALUES // dim))
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def as_float32(rows: np.ndarray) -> Tensor:
    """Copy rows (N, D), float32 or uint8 and possibly of a memory map, to float32; uint8 values are divided by 255."""
    copy = torch.from_numpy(np.array(rows))
    return copy.float().div_(255) if copy.dtype == torch.uint8 else copy.float()


def centre_of(vectors: np.ndarray) -> Tensor:
    """Return the mean of the first vectors, (D,). Subtracting it on both sides keeps `squared_distances` accurate."""
    return as_float32(vectors[next(row_blocks(len(vectors), vectors.shape[1]))]).mean(0)


def squared_distances(x: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """Compute |x|^2 + |t|^2 - 2 x.t for all pairs of rows: as fast as a matrix product, but inaccurate for close pairs.

    Args:
        x: (N, D) float32, centred.
        t: (M, D) float32, centred.

    Returns:
        (N, M) float32, sometimes slightly negative, and a bound on its absolute error.
    """
    x_norm, t_norm = (torch.linalg.vector_norm(rows, dim=1).square() for rows in (x, t))
    squared = torch.addmm(t_norm, x, t.T, alpha=-2).add_(x_norm[:, None])  # (N, M)
    return squared, ROUNDING * (x_norm.max() + t_norm.max()).item()
