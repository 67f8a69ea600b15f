import itertools
from collections import Counter
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from flowergen.data.splits import apportion, complete_subsets, stratified_split

SEEDS = range(20)


def unique_digests(num: int, first: int = 0) -> np.ndarray:
    return np.array([sha256(str(first + index).encode()).hexdigest() for index in range(num)])


def sizes(subsets: np.ndarray) -> dict[str, int]:
    return {subset: int((subsets == subset).sum()) for subset in ("train", "val", "test")}


def assert_duplicates_are_together(subsets: np.ndarray, digests: np.ndarray) -> None:
    assert len(set(zip(digests.tolist(), subsets.tolist(), strict=True))) == len(set(digests.tolist()))


# ---- Apportionment
def test_shares_are_the_whole_numbers_nearest_to_proportion() -> None:
    """Of all ways to hand out the total, none has a smaller sum of squared distances from exact proportion."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        counts = rng.integers(0, 9, rng.integers(1, 5)).tolist()
        total = int(rng.integers(0, sum(counts) + 1))
        shares = apportion(counts, total)
        assert sum(shares) == total
        assert all(0 <= share <= count for share, count in zip(shares, counts, strict=True))
        if sum(counts):
            exact = [Fraction(total * count, sum(counts)) for count in counts]
            ways = (way for way in itertools.product(*(range(n + 1) for n in counts)) if sum(way) == total)
            distances = [sum((a - b) ** 2 for a, b in zip(way, exact, strict=True)) for way in (shares, *ways)]
            assert distances[0] == min(distances)


def test_ties_go_to_the_earlier_class() -> None:
    assert apportion([5, 5, 5, 5], 2) == [1, 1, 0, 0]
    assert apportion([], 0) == apportion([0, 0], 0)[:0] == []


@pytest.mark.parametrize("total", [-1, 4])
def test_more_than_there_is_cannot_be_apportioned(total: int) -> None:
    with pytest.raises(ValueError, match="out of 3"):
        apportion([1, 2], total)


# ---- Stratified split
def test_totals_and_every_class_are_exact() -> None:
    """round(N/10) to val and to test, and of each class a tenth, to the nearest picture or the one beside it."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        num = int(rng.integers(1, 700))
        labels = rng.integers(-1, rng.integers(0, 12), num)  # the unlabelled are a class as well
        subsets = stratified_split(labels, unique_digests(num), seed)
        assert sizes(subsets) == {"train": num - 2 * round(num / 10), "val": round(num / 10), "test": round(num / 10)}
        for label in np.unique(labels):
            of_class = subsets[labels == label]
            for held_out in ("val", "test"):
                assert abs((of_class == held_out).sum() - len(of_class) / 10) < 1.2


def test_classes_of_ten_each_hold_out_one_for_val_and_one_for_test() -> None:
    labels = np.repeat(np.arange(30), 10)
    for seed in SEEDS:
        subsets = stratified_split(labels, unique_digests(300), seed)
        for held_out in ("val", "test"):
            assert (np.bincount(labels[subsets == held_out], minlength=30) == 1).all()


def test_classes_of_five_hold_out_one_each_for_val_or_for_test() -> None:
    """A class whose share of test was rounded up is not asked again for val."""
    labels = np.repeat(np.arange(20), 5)
    subsets = stratified_split(labels, unique_digests(100), 0)
    assert (np.bincount(labels[subsets != "train"]) == 1).all()


def test_fractions_are_free() -> None:
    digests = unique_digests(200)
    labels = np.arange(200) % 4
    assert sizes(stratified_split(labels, digests, 0, 0.25, 0.5)) == {"train": 50, "val": 50, "test": 100}
    assert sizes(stratified_split(labels, digests, 0, 0.0, 0.0)) == {"train": 200, "val": 0, "test": 0}
    assert stratified_split(labels[:0], digests[:0], 0).shape == (0,)


def test_a_split_depends_on_the_set_of_pictures_and_the_seed_alone() -> None:
    """Not on the order of the listing, not on numpy's global state; another seed gives another split."""
    rng = np.random.default_rng(0)
    digests = unique_digests(300)[rng.integers(0, 250, 300)]
    labels = rng.integers(0, 5, 300)
    subsets = stratified_split(labels, digests, 3)
    shuffled = rng.permutation(300)
    np.random.seed(1)
    np.testing.assert_array_equal(stratified_split(labels[shuffled], digests[shuffled], 3), subsets[shuffled])
    assert (stratified_split(labels, digests, 4) != subsets).mean() > 0.1


def test_splits_stay_what_they_are() -> None:
    """Were this to change with a version of flowergen or numpy, older runs would be evaluated on what they were trained on."""
    subsets = stratified_split(np.arange(40) % 3, unique_digests(40), seed=7)
    assert "".join(subset[1] for subset in subsets) == "rrrrrrrrreerrrrarrarrrrarrerrrrrrerrrarr"  # tRain, vAl, tEst


def test_duplicates_stay_together_and_totals_are_met_all_the_same() -> None:
    """Whether the copies have one label or several, as long as there are single pictures to fill up with."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        copies = np.concatenate([np.arange(150), rng.integers(0, 60, 100)])  # groups of up to half a dozen
        digests = unique_digests(150)[copies]
        labels = rng.integers(-1, 4, 250) if seed % 2 else copies % 4
        subsets = stratified_split(labels, digests, seed)
        assert_duplicates_are_together(subsets, digests)
        assert sizes(subsets) == {"train": 200, "val": 25, "test": 25}


def test_classes_of_nothing_but_pairs_still_give_the_totals() -> None:
    """15 classes of five pairs: none can give its one picture, yet pairs of some classes make up the 15, less one."""
    digests = np.repeat(unique_digests(75), 2)
    labels = np.repeat(np.arange(15), 10)
    for seed in SEEDS:
        subsets = stratified_split(labels, digests, seed)
        assert_duplicates_are_together(subsets, digests)
        assert sizes(subsets) == {"train": 122, "val": 14, "test": 14}


def test_one_picture_in_a_thousand_copies_does_not_fill_the_test_set() -> None:
    digests = np.concatenate([unique_digests(1).repeat(1000), unique_digests(1000, first=1)])
    subsets = stratified_split(np.zeros(2000, dtype=int), digests, 0)
    assert set(subsets[:1000]) == {"train"}
    assert sizes(subsets) == {"train": 1600, "val": 200, "test": 200}


def test_every_picture_is_held_out_equally_often() -> None:
    """Over 1,000 seeds, a tenth of the time each in val and test within 5 standard deviations, pairs as others."""
    num_seeds = 1000
    digests = np.concatenate([unique_digests(160), unique_digests(20)])  # the first 20 are pairs
    counts = {held_out: np.zeros(180) for held_out in ("val", "test")}
    for seed in range(num_seeds):
        subsets = stratified_split(np.zeros(180, dtype=int), digests, seed)
        for held_out, count in counts.items():
            count += subsets == held_out
    sigma = np.sqrt(num_seeds * 0.1 * 0.9)
    for count in counts.values():
        assert np.abs(count - 0.1 * num_seeds).max() < 5 * sigma


# ---- A data set's own split
def test_train_and_test_folders_give_a_tenth_of_train_to_val() -> None:
    subsets = np.array(["train"] * 200 + ["test"] * 50)
    labels = np.arange(250) % 5
    completed = complete_subsets(subsets, labels, unique_digests(250), 0)
    assert sizes(completed) == {"train": 180, "val": 20, "test": 50}
    assert set(completed[200:]) == {"test"}
    assert np.bincount(labels[completed == "val"]).tolist() == [4] * 5


def test_train_and_val_folders_give_a_tenth_of_train_to_test() -> None:
    subsets = np.array(["train"] * 200 + ["val"] * 50)
    completed = complete_subsets(subsets, np.arange(250) % 5, unique_digests(250), 0)
    assert sizes(completed) == {"train": 180, "val": 50, "test": 20}
    assert set(completed[200:]) == {"val"}


def test_a_complete_split_without_copies_stays_as_it_is() -> None:
    subsets = np.array(["test", "train", "val", "train"] * 10)
    np.testing.assert_array_equal(complete_subsets(subsets, np.zeros(40, dtype=int), unique_digests(40), 0), subsets)


def test_copies_of_held_out_pictures_are_not_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    """They join the held-out side: test where one lies there, else val; what was in test stays, and nothing is lost."""
    caplog.set_level("INFO")
    subsets = np.array(["train", "test", "train", "val", "val", "test", "train", "val", "test", "train", "train"])
    digests = np.array(list("aabbccdddee"))
    completed = complete_subsets(subsets, np.zeros(11, dtype=int), digests, 0)
    assert completed.tolist() == [
        "test",
        "test",
        "val",
        "val",
        "test",
        "test",
        "test",
        "test",
        "test",
        "train",
        "train",
    ]
    assert "moved 5 copies" in caplog.text


def test_val_drawn_from_train_keeps_copies_together_and_ignores_the_order() -> None:
    rng = np.random.default_rng(0)
    digests = unique_digests(200)[rng.integers(0, 200, 300)]
    subsets = np.where(np.arange(300) < 60, "test", "train")
    labels = rng.integers(-1, 3, 300)
    completed = complete_subsets(subsets, labels, digests, 5)
    assert_duplicates_are_together(completed, digests)
    assert sizes(completed)["val"] == round((completed != "test").sum() / 10)
    shuffled = rng.permutation(300)
    again = complete_subsets(subsets[shuffled], labels[shuffled], digests[shuffled], 5)
    np.testing.assert_array_equal(again, completed[shuffled])


@pytest.mark.real_data
def test_oxford_flowers_split_80_10_10_with_duplicates_on_one_side(photographs: Path) -> None:
    """8,189 = 6,551 + 819 + 819, at least four of each class held out; its five pairs of duplicates stay pairs."""
    from flowergen.data.flowers102 import list_flowers102

    root = photographs / "flowers102_64px"
    listing = list_flowers102(root, download=False)
    digests = np.array([sha256((root / "flowers-102" / name).read_bytes()).hexdigest() for name in listing.names])
    assert sum(num > 1 for num in Counter(digests.tolist()).values()) == 5

    subsets = stratified_split(listing.labels, digests, seed=0)
    assert sizes(subsets) == {"train": 6551, "val": 819, "test": 819}
    assert_duplicates_are_together(subsets, digests)
    for held_out in ("val", "test"):
        assert np.bincount(listing.labels[subsets == held_out], minlength=102).min() >= 4

    assert listing.subsets is not None
    official = complete_subsets(listing.subsets, listing.labels, digests, seed=0)
    assert_duplicates_are_together(official, digests)
    assert sizes(official) == {"train": 1019, "val": 1018, "test": 6152}
