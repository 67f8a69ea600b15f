"""From when on a model in training learns its pictures by heart."""

from collections.abc import Sequence
from typing import NamedTuple

SIGNIFICANT = 0.01  # chance of as many copies where there are none


class Look(NamedTuple):
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


def is_best_without_copying(looks: Sequence[Look]) -> bool:
    """Whether the last look has no more copies than chance has it, and the lowest held-out loss of all such looks."""
    last = looks[-1]
    return not last.copying and all(last.held_out < look.held_out for look in looks[:-1] if not look.copying)


def memorising_from(looks: Sequence[Look]) -> int | None:
    """The first epoch from which on, for two looks in a row, both signs show: a held-out loss above its lowest, and copies.

    Either sign alone may mislead: a held-out loss goes up and down from one look to the next, and one look in a hundred finds
    copies by chance.

    Args:
        looks: in the order of their epochs.

    Returns:
        The epoch of the first of the two; None for not yet.
    """
    lowest, before = float("inf"), None
    for look in looks:
        memorising = look.held_out > lowest and look.copying
        if memorising and before is not None:
            return before
        before = look.epoch if memorising else None
        lowest = min(lowest, look.held_out)
    return None
