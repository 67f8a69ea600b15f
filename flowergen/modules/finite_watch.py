"""Detection of losses and gradients that are not finite."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce, is_available, is_initialized

from flowergen.errors import UserError

NO_STEP = 2**62


class NotFinite(UserError):
    """A loss or a gradient became infinite or NaN; the message says at which step, and what to do."""


class FiniteWatch:
    """Records, on the device, the first step at which each value was not finite; only ``first_nonfinite`` waits for it."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, ...], Tensor] = {}

    def check(self, names: Sequence[str], values: Tensor, step: int) -> None:
        """Check the values of a batch, without waiting for the device.

        Args:
            names, values: K names, and (K,), such as sums over the batch, which are not finite if that of any picture is not.
            step: the optimiser step.
        """
        names = tuple(names)
        first = torch.where(values.isfinite(), NO_STEP, step)
        self._first[names] = torch.minimum(self._first[names], first) if names in self._first else first

    def first_nonfinite(self) -> tuple[int, list[str]] | None:
        """Return the first step with a value that was not finite on any device, and the names of those values, and reset.

        Every process must call it. ``loss``, the sum of the other terms, and ``gradient`` are named only if no other value is
        affected.
        """
        if not self._first:
            return None
        firsts = torch.cat(list(self._first.values()))
        if is_available() and is_initialized():
            all_reduce(firsts, ReduceOp.MIN)
        steps = dict(zip([name for names in self._first for name in names], firsts.tolist(), strict=True))
        self._first = {}
        step = min(steps.values())
        if step == NO_STEP:
            return None
        bad = [name for name, first in steps.items() if first == step]
        return step, [name for name in bad if name not in ("loss", "gradient")] or bad[:1]
