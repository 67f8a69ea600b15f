"""Detection of when a model in training begins to memorise its training pictures."""

from collections.abc import Sequence
from typing import NamedTuple

SIGNIFICANT = 0.01  # significance level: chance of as many copies if there are none


class Evaluation(NamedTuple):
    """One evaluation during training.

    Attributes:
        epoch: finished epochs.
        held_out: loss on held-out pictures, lower is better.
        copies: number of samples classified as copies.
        num: number of samples.
        control_copies: number of held-out pictures classified as copies.
        num_control: number of held-out pictures.
    """

    epoch: int
    held_out: float
    copies: int
    num: int
    control_copies: int
    num_control: int

    @property
    def copying(self) -> bool:
        """True if samples are classified as copies more often than held-out pictures (Fisher's exact test, one-sided)."""
        from scipy.stats import fisher_exact  # takes a second to import

        table = [[self.copies, self.num - self.copies], [self.control_copies, self.num_control - self.control_copies]]
        return bool(fisher_exact(table, alternative="greater").pvalue < SIGNIFICANT)


def is_best_without_copying(evaluations: Sequence[Evaluation]) -> bool:
    """Return whether the last evaluation shows no significant copying and the lowest held-out loss of all such ones."""
    *others, last = evaluations
    return not last.copying and all(last.held_out < other.held_out for other in others if not other.copying)


def memorising_from(evaluations: Sequence[Evaluation]) -> int | None:
    """Find the first of two consecutive evaluations with both signs: a held-out loss above its minimum, and copies.

    Either sign alone may mislead: the held-out loss fluctuates between evaluations, and one evaluation in a hundred finds
    copies by chance.

    Args:
        evaluations: evaluations in order of their epochs.

    Returns:
        Its epoch; None if there is none yet.
    """
    lowest, before = float("inf"), None
    for evaluation in evaluations:
        memorising = evaluation.held_out > lowest and evaluation.copying
        if memorising and before is not None:
            return before
        before = evaluation.epoch if memorising else None
        lowest = min(lowest, evaluation.held_out)
    return None
