"""When a model in training begins to memorise its pictures."""

from collections.abc import Sequence
from typing import NamedTuple

SIGNIFICANT = 0.01  # chance of as many copies where there are none


class Evaluation(NamedTuple):
    """One evaluation during training.

    Attributes:
        epoch: finished epochs.
        held_out: loss on held-out pictures, lower is better.
        copies: samples taken for copies.
        num: samples.
        control_copies: held-out pictures taken for copies.
        num_control: held-out pictures.
    """

    epoch: int
    held_out: float
    copies: int
    num: int
    control_copies: int
    num_control: int

    @property
    def copying(self) -> bool:
        """Whether samples are taken for copies more often than held-out pictures are (Fisher's exact test, one-sided)."""
        from scipy.stats import fisher_exact  # a second to import

        table = [[self.copies, self.num - self.copies], [self.control_copies, self.num_control - self.control_copies]]
        return bool(fisher_exact(table, alternative="greater").pvalue < SIGNIFICANT)


def is_best_without_copying(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the last one has no more copies than chance explains, and the lowest held-out loss of all such evaluations."""
    *others, last = evaluations
    return not last.copying and all(last.held_out < other.held_out for other in others if not other.copying)


def memorising_from(evaluations: Sequence[Evaluation]) -> int | None:
    """The first of two consecutive evaluations with both signs: a held-out loss above its lowest, and copies.

    Either sign alone may mislead: a held-out loss goes up and down between evaluations, and one evaluation in a hundred finds
    copies by chance.

    Args:
        evaluations: in the order of their epochs.

    Returns:
        Its epoch; None for not yet.
    """
    lowest, before = float("inf"), None
    for evaluation in evaluations:
        memorising = evaluation.held_out > lowest and evaluation.copying
        if memorising and before is not None:
            return before
        before = evaluation.epoch if memorising else None
        lowest = min(lowest, evaluation.held_out)
    return None
