"""Splits of a data set into training and held-out pictures.

A split is a function of the seed and of the set of pictures and labels: files may be listed in any order, renamed or
moved. To that end, pictures are identified only by their digests and drawn in the order of these.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

log = logging.getLogger(__name__)

VAL_FRACTION = TEST_FRACTION = 0.1


def apportion(counts: Sequence[int], total: int) -> list[int]:
    """Divide a total in proportion to counts, by largest remainder (Hamilton's method).

    Args:
        counts: count of each class, not negative.
        total: number to divide, from 0 to the sum of the counts.

    Returns:
        The share of each class: the exact proportion rounded down or up, so never more than the count. The shares sum to
        the total; of equal remainders, the earlier class is rounded up.

    Raises:
        ValueError: the total is negative or exceeds the sum of the counts.

    >>> apportion([50, 30, 20], 7)
    [4, 2, 1]
    """
    num = sum(counts)
    if not 0 <= total <= num:
        raise ValueError(f"cannot take {total} out of {num}")
    shares = [total * count // max(num, 1) for count in counts]
    remainders = [total * count % max(num, 1) for count in counts]
    for index in sorted(range(len(counts)), key=lambda index: -remainders[index])[: total - sum(shares)]:
        shares[index] += 1
    return shares


def stratified_split(
    labels: np.ndarray,
    digests: np.ndarray,
    seed: int,
    val_fraction: float = VAL_FRACTION,
    test_fraction: float = TEST_FRACTION,
) -> np.ndarray:
    """Hold out the same fraction of every class, keeping byte-identical duplicates together regardless of their labels.

    Args:
        labels: (N,) int64 class; unlabelled pictures, -1, form a separate class.
        digests: (N,) str, equal for byte-identical pictures.
        seed: seed of the draw, not negative.
        val_fraction: fraction of all pictures, in [0, 1]; at most 1 together with ``test_fraction``.
        test_fraction: fraction of all pictures.

    Returns:
        (N,) str: "train", "val" or "test". round(N * fraction) pictures are held out, each class with its share by
        largest remainder, unless groups of duplicates do not add up to these numbers.
    """
    return hold_out(labels, digests, seed, round(len(labels) * val_fraction), round(len(labels) * test_fraction))


def hold_out(labels: np.ndarray, digests: np.ndarray, seed: int, num_val: int, num_test: int) -> np.ndarray:
    """Split as in ``stratified_split``, but by numbers of pictures.

    Args:
        labels, digests, seed: see ``stratified_split``.
        num_val: number of pictures for val, capped at those left after test.
        num_test: number of pictures for test, which is drawn first.

    Returns:
        (N,) str: "train", "val" or "test".
    """
    class_sizes = Counter(labels.tolist())
    classes = sorted(class_sizes)
    left = [class_sizes[label] for label in classes]
    needs = {}  # subset -> class -> number still to be held out
    for subset, total in (("test", num_test), ("val", num_val)):
        shares = apportion(left, min(total, sum(left)))
        left = [num - share for num, share in zip(left, shares, strict=True)]
        needs[subset] = Counter(dict(zip(classes, shares, strict=True)))

    groups: dict[str, list[int]] = {}
    for row, digest in enumerate(digests.tolist()):
        groups.setdefault(digest, []).append(row)
    generator = np.random.default_rng(np.random.SeedSequence([seed, *b"split"]))
    # not generator.permutation, whose algorithm may change: runs with another numpy would train on held-out pictures
    order = np.argsort(generator.random(len(groups)), kind="stable")
    shuffled = [rows for _, rows in sorted(groups.items())]
    shuffled = [shuffled[index] for index in order]

    subsets = np.full(len(labels), "train")
    for rows in shuffled:
        content = Counter(labels[rows].tolist())
        for subset, need in needs.items():
            if all(need[label] >= num for label, num in content.items()):
                need.subtract(content)
                subsets[rows] = subset
                break
    # If the duplicates of a class do not add up to its share, fill up with any other pictures.
    for subset, need in needs.items():
        missing = need.total()
        for rows in shuffled:
            if len(rows) <= missing and subsets[rows[0]] == "train":
                missing -= len(rows)
                subsets[rows] = subset
    return subsets


def complete_subsets(subsets: np.ndarray, labels: np.ndarray, digests: np.ndarray, seed: int) -> np.ndarray:
    """Prepare a data set's own split for training: remove leaks, and add val or test if missing.

    A picture with copies in several subsets is held out with all its copies: in test if one of them is there, else in val.
    No picture is dropped, and the data set's own test pictures stay in test, joined by the copies. Then, if val or test is
    empty, 10% of train is used for it, drawn as in ``stratified_split``.

    Args:
        subsets: (N,) "train", "val" or "test".
        labels, digests, seed: see ``stratified_split``.

    Returns:
        (N,) str: "train", "val" or "test".
    """
    completed = subsets.astype("<U5")  # a copy
    for held_out in ("val", "test"):  # test takes precedence
        completed[np.isin(digests, digests[subsets == held_out])] = held_out
    num_moved = np.count_nonzero(completed != subsets)
    if num_moved:
        log.info("moved %d copies of held-out pictures to the subset of the picture that they are copies of", num_moved)

    train = completed == "train"
    val_fraction = 0.0 if "val" in completed else VAL_FRACTION
    test_fraction = 0.0 if "test" in completed else TEST_FRACTION
    completed[train] = stratified_split(labels[train], digests[train], seed, val_fraction, test_fraction)
    return completed
