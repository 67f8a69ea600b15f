"""Learning-rate schedules, as functions of our own count of optimiser steps."""

import math
from typing import Literal

LrSchedule = Literal["constant", "cosine"]


def num_steps(steps: float, total_steps: int) -> int:
    """Convert a number of optimiser steps, or a fraction of the run, to steps.

    Args:
        steps: a whole number of steps or, below 1, a fraction of ``total_steps``, which gives fewer steps unless both are 0.
        total_steps: optimiser steps of the run.

    >>> num_steps(300, 1000), num_steps(0.25, 1000), num_steps(0.99, 10)
    (300, 250, 9)
    """
    return int(steps * total_steps if steps < 1 else steps)


def lr_factor(schedule: LrSchedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of the base learning rate at optimiser step ``step``.

    After a linear warm-up it is constant, or follows half a cosine down to 0 at ``total_steps`` (SGDR without restarts,
    arXiv:1608.03983, equation 5).

    Args:
        schedule: ``constant`` or ``cosine``.
        step: optimiser step, from 0.
        warmup_steps: steps until the factor is 1; 0 for no warm-up.
        total_steps: the horizon of the cosine.

    >>> [round(lr_factor("cosine", step, 2, 6), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))
