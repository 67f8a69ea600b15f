"""Which pictures are trained on and which are held out.

A split is a function of the seed and of the set of pictures and labels: files may be listed in any order, renamed or
moved. To that end, pictures are known by their digest alone, and drawn in the order of their digests.
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
        counts: of each class, not negative.
        total: to be divided, from 0 to the sum of the counts.

    Returns:
        A share for each class: the exact proportion rounded down or up, so never more than the count. They sum to the
        total; of equal remainders, the earlier class is rounded up.

    Raises:
        ValueError: the counts do not hold the total.

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
    """Hold out the same fraction of every class, and byte-identical duplicates together, whatever their labels.

    Args:
        labels: (N,) int64 class; the unlabelled, -1, are a class of their own.
        digests: (N,) str, equal for byte-identical pictures.
        seed: of the draw, not negative.
        val_fraction: of all pictures, in [0, 1]; with ``test_fraction`` at most 1.
        test_fraction: of all pictures.

    Returns:
        (N,) str: "train", "val" or "test". round(N * fraction) pictures are held out, each class with its share by
        largest remainder, unless groups of duplicates do not add up to these numbers.
    """
    return hold_out(labels, digests, seed, round(len(labels) * val_fraction), round(len(labels) * test_fraction))


def hold_out(labels: np.ndarray, digests: np.ndarray, seed: int, num_val: int, num_test: int) -> np.ndarray:
    """``stratified_split`` by numbers of pictures.

    Args:
        labels: (N,) int64 class; the unlabelled, -1, are a class of their own.
        digests: (N,) str, equal for byte-identical pictures.
        seed: of the draw, not negative.
        num_val: pictures to hold out for val; what is left where there are fewer.
        num_test: for test, which is drawn first.

    Returns:
        (N,) str: "train", "val" or "test".
    """
    class_sizes = Counter(labels.tolist())
    classes = sorted(class_sizes)
    left = [class_sizes[label] for label in classes]
    needs = {}  # subset -> class -> how many are still to be held out
    for subset, total in (("test", num_test), ("val", num_val)):
        shares = apportion(left, min(total, sum(left)))
        left = [num - share for num, share in zip(left, shares, strict=True)]
        needs[subset] = Counter(dict(zip(classes, shares, strict=True)))

    groups: dict[str, list[int]] = {}
    for row, digest in enumerate(digests.tolist()):
        groups.setdefault(digest, []).append(row)
    generator = np.random.default_rng(np.random.SeedSequence([seed, *b"split"]))
    # not generator.permutation, whose algorithm numpy may change: runs of other versions would see held-out pictures
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
    # Where the duplicates of a class do not add up to its share, any other pictures make up the total.
    for subset, need in needs.items():
        missing = need.total()
        for rows in shuffled:
            if len(rows) <= missing and subsets[rows[0]] == "train":
                missing -= len(rows)
                subsets[rows] = subset
    return subsets


def complete_subsets(subsets: np.ndarray, labels: np.ndarray, digests: np.ndarray, seed: int) -> np.ndarray:
    """Make a data set's own split fit to train on: nothing leaks, and both val and test are there.

    A picture with copies in several subsets is held out with all its copies: in test if one lies there, else in val. So
    no picture is dropped, and the data set's own test pictures all stay, joined by the copies. After that, where val or
    test is missing or empty, 10% of train become it, drawn as in ``stratified_split``.

    Args:
        subsets: (N,) "train", "val" or "test".
        labels: (N,) int64, -1 where unlabelled.
        digests: (N,) str, equal for byte-identical pictures.
        seed: of the draw.

    Returns:
        (N,) str: "train", "val" or "test".
    """
    completed = subsets.astype("<U5")  # a copy
    for held_out in ("val", "test"):  # test has the last word
        completed[np.isin(digests, digests[subsets == held_out])] = held_out
    num_moved = np.count_nonzero(completed != subsets)
    if num_moved:
        log.info("moved %d copies of held-out pictures to where those are, so that none is trained on", num_moved)

    train = completed == "train"
    val_fraction = 0.0 if "val" in completed else VAL_FRACTION
    test_fraction = 0.0 if "test" in completed else TEST_FRACTION
    completed[train] = stratified_split(labels[train], digests[train], seed, val_fraction, test_fraction)
    return completed
