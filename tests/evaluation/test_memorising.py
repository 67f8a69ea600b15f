from itertools import pairwise
from math import comb

import pytest
from scipy.stats import hypergeom

from flowergen.evaluation.memorising import Evaluation, is_best_without_copying, memorising_from


def p_value(copies: int, num: int, control: int, num_control: int) -> float:
    """The chance of as many copies or more among the samples, were they spread over both sets by chance: the sum by hand."""
    total, marked = num + num_control, copies + control
    return sum(comb(num, k) * comb(num_control, marked - k) for k in range(copies, min(num, marked) + 1)) / comb(total, marked)


def evaluations(*entries: tuple[float, bool]) -> list[Evaluation]:
    """(held-out loss, whether there are copies), every ten epochs."""
    return [Evaluation(10 * n, loss, 200 if copying else 0, 256, 0, 64) for n, (loss, copying) in enumerate(entries, 1)]


@pytest.mark.parametrize(
    ("num", "num_control", "control"), [(256, 409, 4), (50, 40, 0), (256, 51, 1), (10, 1000, 10), (3, 2, 0)]
)
def test_copying_is_fishers_exact_test_at_one_percent(num: int, num_control: int, control: int) -> None:
    """Every number of copies, against a sum of binomial coefficients and scipy's hypergeometric distribution."""
    found = []
    for copies in range(num + 1):
        p = p_value(copies, num, control, num_control)
        assert p == pytest.approx(hypergeom.sf(copies - 1, num + num_control, copies + control, num), rel=1e-9, abs=1e-300)
        found.append(Evaluation(1, 0.0, copies, num, control, num_control).copying)
        assert found[-1] == (p < 0.01), copies
    assert all(after >= before for before, after in pairwise(found)), "more copies are no less significant"
    assert not found[0]
    assert found[-1] == (num > 3), "three of three against none of two are chance"


def test_fewer_copies_than_the_control_has_are_no_sign() -> None:
    """One-sided: a generator that copies less than chance has it is not copying."""
    assert not Evaluation(1, 0.0, 0, 256, 60, 64).copying
    assert Evaluation(1, 0.0, 256, 256, 0, 64).copying


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(1.0, True)],
        [(1.0, True), (0.9, True), (0.8, True), (0.7, True)],  # copies, and the loss still falls
        [(1.0, False), (1.1, False), (1.2, False), (1.3, False)],  # the loss rises, without copies
        [(1.0, False), (1.1, True)],  # one evaluation only
        [(1.0, False), (1.1, True), (1.2, False), (1.3, True)],  # not in a row
        [(1.0, False), (1.1, True), (0.9, True), (1.0, True)],  # a new lowest between them
        [(1.0, False), (1.0, True), (1.0, True)],  # as low as the lowest is not above it
        [(1.0, False), (1.1, False), (1.2, True)],
    ],
)
def test_these_are_not_memorising(entries: list[tuple[float, bool]]) -> None:
    assert memorising_from(evaluations(*entries)) is None


@pytest.mark.parametrize(
    ("entries", "epoch"),
    [
        ([(1.0, False), (1.1, True), (1.2, True)], 20),
        ([(1.0, True), (1.1, True), (1.05, True)], 20),  # above the lowest, though it falls
        ([(1.0, False), (1.1, True), (1.2, False), (1.3, True), (1.4, True), (0.5, False)], 40),  # it stays the first
        ([(1.0, False), (0.5, False), (0.9, True), (0.6, True)], 30),  # above the lowest, not the evaluation before
        ([(1.0, False), (1.1, True), (1.2, True), (1.3, True), (1.4, True)], 20),
        ([(1.0, False), (1.1, True), (0.9, True), (1.0, True), (1.0, True)], 40),
    ],
)
def test_memorising_begins_at_the_first_of_two_looks_in_a_row(entries: list[tuple[float, bool]], epoch: int) -> None:
    assert memorising_from(evaluations(*entries)) == epoch
    assert memorising_from([*evaluations(*entries), *evaluations((0.1, False))]) == epoch, "what comes later changes nothing"


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ([(1.0, False)], True),
        ([(1.0, True)], False),
        ([(1.0, False), (0.9, False)], True),
        ([(1.0, False), (0.9, True)], False),
        ([(1.0, False), (1.0, False)], False),  # the first of equal ones
        ([(0.5, False), (1.0, False), (0.9, False)], False),
        ([(0.5, True), (0.6, False)], True),  # one with copies is no rival
        ([(0.5, True), (0.6, True)], False),
        ([(0.7, False), (0.5, True), (0.6, False)], True),
        ([(0.5, False), (0.4, True), (0.6, False)], False),
        ([(0.6, False), (0.5, True), (0.6, False)], False),
        ([(1.0, True), (0.9, False)], True),
    ],
)
def test_the_best_without_copies_has_the_lowest_loss_of_all_without(entries: list[tuple[float, bool]], best: bool) -> None:
    assert is_best_without_copying(evaluations(*entries)) is best
