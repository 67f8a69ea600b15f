"""Nearest-neighbour search to find copies.

Sources: Carlini et al. 2023, arXiv:2301.13188, section 5 (distances between pixels); Yoon et al. 2023 (ICML workshop on
Structured Probabilistic Inference) and Gu et al. 2023, arXiv:2310.02664 (the nearest compared with the second nearest).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowergen.errors import UserError
from flowergen.metrics.pairwise import BLOCK_ROWS, as_float32, centre_of, row_blocks, squared_distances

NUM_REFINED = 4  # candidates that are measured again: float32 may misorder the closest ones


class Nearest(NamedTuple):
    """The nearest and the second nearest candidate of N queries."""

    index: Tensor  # type: ignore[assignment]  # (N, 2) int64; tuple.index has no use here
    distance: Tensor  # (N, 2) float32, Euclidean, ascending


def two_nearest(queries: Sequence[np.ndarray], candidates: np.ndarray) -> Nearest:
    """Find the two candidates nearest to each query, by brute force in blocks.

    Candidates are ranked by matrix products in float32; the first four are measured again by direct difference and sorted, so
    an exact copy has a distance of exactly 0. Among candidates whose distances differ by less than the products resolve, about
    a thousandth of the vectors' spread, the nearest may be missed only if more than four lie that close. Ties keep the order of
    the candidates.

    Args:
        queries: variants of the same N vectors, each (N, D) float32 or uint8, for instance pictures and their mirror images;
            the distance to a candidate is that of the nearest variant. uint8 values are divided by 255.
        candidates: (M, D) float32 or uint8, M >= 2. Any of the arrays may be a memory map larger than memory.

    Raises:
        UserError: fewer than two candidates.
    """
    if len(candidates) < 2:
        raise UserError(f"{len(candidates)} candidates: the nearest and the second nearest need 2 or more")
    dim, centre = candidates.shape[1], centre_of(candidates)
    index, distance = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0, 2)]
    for rows in row_blocks(len(queries[0]), dim):
        ranked = _rank([as_float32(variant[rows]) - centre for variant in queries], candidates, centre)  # (B, K)
        measured = _measure([as_float32(variant[rows]) for variant in queries], candidates, ranked)  # (B, K)
        nearest = measured.sort(dim=1, stable=True)
        index.append(ranked.gather(1, nearest.indices)[:, :2])
        distance.append(nearest.values[:, :2])
    return Nearest(torch.cat(index), torch.cat(distance))


def _rank(x: list[Tensor], candidates: np.ndarray, centre: Tensor) -> Tensor:
    """Return the approximately nearest ``NUM_REFINED`` candidates of B vectors, in ascending order of index: (B, K) int64."""
    value, index = x[0].new_empty(len(x[0]), 0), torch.empty(len(x[0]), 0, dtype=torch.int64)
    for columns in row_blocks(*candidates.shape):
        squared = _nearest_variant(x, as_float32(candidates[columns]).sub_(centre))[0]  # (B, M')
        best = squared.topk(min(NUM_REFINED, squared.shape[1]), largest=False)
        value, index = torch.cat((value, best.values), 1), torch.cat((index, best.indices + columns.start), 1)
        best = value.topk(min(NUM_REFINED, value.shape[1]), largest=False)
        value, index = best.values, index.gather(1, best.indices)
    return index.sort(dim=1).values


def _measure(x: list[Tensor], candidates: np.ndarray, index: Tensor) -> Tensor:
    """Return the distances (B, K) of B vectors, each given in all variants, to the candidates with indices (B, K)."""
    return torch.stack([_distance(x, as_float32(candidates[numbers.numpy()])) for numbers in index.unbind(1)], 1)


def _distance(x: list[Tensor], t: Tensor) -> Tensor:
    """Return the distance (B,) of each vector's nearest variant to its own row of t (B, D), by direct difference."""
    return torch.stack([torch.linalg.vector_norm(variant - t, dim=1) for variant in x]).amin(0)


def near_duplicates(
    vectors: Sequence[np.ndarray],
    closer_than: float,
    progress: Callable[[Iterable[slice]], Iterable[slice]] = lambda blocks: blocks,
) -> np.ndarray:
    """Find rows that are closer than a threshold to an earlier row that is not a near duplicate itself.

    Args:
        vectors: variants of the same M vectors, each (M, D) float32 or uint8 (divided by 255), the vectors themselves first;
            the distance of a row to an earlier one is that of its nearest variant.
        closer_than: Euclidean distance; a row at exactly this distance is not a duplicate.
        progress: wraps the blocks of rows to show the progress; a block is compared with all rows up to its end.

    Returns:
        (M,) bool.
    """
    num, dim = vectors[0].shape
    duplicate = torch.zeros(num, dtype=torch.bool)
    if not num:
        return duplicate.numpy()
    centre = centre_of(vectors[0])
    for rows in progress(row_blocks(num, dim)):
        x = [as_float32(variant[rows]).sub_(centre) for variant in vectors]
        for columns in row_blocks(rows.start, dim):
            t = as_float32(vectors[0][columns]).sub_(centre)
            wanted = ~duplicate[rows, None] & ~duplicate[columns]  # (B, M')
            duplicate[rows] |= _closer(x, t, closer_than, wanted).any(1)
        size = rows.stop - rows.start
        earlier = torch.ones(size, size, dtype=torch.bool).tril(-1) & ~duplicate[rows, None] & ~duplicate[rows]
        close = _closer(x, x[0], closer_than, earlier)  # (B, B)
        for row in close.any(1).nonzero().flatten().tolist():
            duplicate[rows.start + row] = (close[row] & ~duplicate[rows]).any()
    return duplicate.numpy()


def _closer(x: list[Tensor], t: Tensor, closer_than: float, wanted: Tensor) -> Tensor:
    """Return which wanted pairs (B, M') are closer; pairs within the rounding error are measured by direct difference."""
    squared, rounding = _nearest_variant(x, t)
    close = wanted & (squared < closer_than**2)
    for pairs in (wanted & ((squared - closer_than**2).abs() <= rounding)).nonzero().split(BLOCK_ROWS):
        row, column = pairs.unbind(1)
        close[row, column] = _distance([variant[row] for variant in x], t[column]) < closer_than
    return close


def _nearest_variant(x: list[Tensor], t: Tensor) -> tuple[Tensor, float]:
    """Return the squared distances (B, M') of the nearest variants, and a bound on their error."""
    squared, rounding = squared_distances(x[0], t)
    for variant in x[1:]:
        other, error = squared_distances(variant, t)
        squared, rounding = torch.minimum(squared, other), max(rounding, error)
    return squared, rounding
