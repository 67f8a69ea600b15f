"""Notices losses and gradients that are not finite."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce, is_available, is_initialized

from flowergen.errors import UserError

NEVER = 2**62


class NotFinite(UserError):
    """A loss or a gradient became infinite or not a number; the message says at which step, and what to do."""


class FiniteWatch:
    """Remembers, on the device, the first step at which each of several values was not finite: only ``found`` waits for it."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, ...], Tensor] = {}

    def look(self, names: Sequence[str], values: Tensor, step: int) -> None:
        """Add a batch.

        Args:
            names: of K values.
            values: (K,), such as the sums over the batch: not finite if one of its pictures' is not.
            step: of the optimiser.
        """
        names = tuple(names)
        first = torch.where(values.isfinite(), NEVER, step)
        self._first[names] = torch.minimum(self._first[names], first) if names in self._first else first

    def found(self) -> tuple[int, list[str]] | None:
        """The first step with a value that was not finite on any device, and which values; every process must call it.

        What sums up the others, ``loss``, is named only where none of them is bad, and so is ``gradient``.
        """
        if not self._first:
            return None
        firsts = torch.cat(list(self._first.values()))
        if is_available() and is_initialized():
            all_reduce(firsts, ReduceOp.MIN)
        steps = dict(zip([name for names in self._first for name in names], firsts.tolist(), strict=True))
        self._first = {}
        step = min(steps.values())
        if step == NEVER:
            return None
        bad = [name for name, first in steps.items() if first == step]
        return step, [name for name in bad if name not in ("loss", "gradient")] or bad[:1]
