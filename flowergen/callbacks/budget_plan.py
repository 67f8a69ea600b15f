"""How much training fits into a time budget, as a pure function."""

from typing import NamedTuple


class Seconds(NamedTuple):
    """Durations in seconds.

    Attributes:
        step: one optimiser step.
        validation: one validation.
        epoch_end: the other work after every epoch.
        pictures: drawing and evaluation, after the last epoch and after those in which they are due.
        storing: what is computed and stored once training has ended.
    """

    step: float
    validation: float
    epoch_end: float
    pictures: float
    storing: float


class Position(NamedTuple):
    """Current position in training.

    Attributes:
        steps: optimiser steps done.
        epoch: index of this epoch, from 0.
        to_epoch_end: optimiser steps to the end of this epoch.
        steps_an_epoch: optimiser steps of a full epoch.
        validates_every, draws_every: intervals in epochs; 0 for never.
    """

    steps: int
    epoch: int
    to_epoch_end: int
    steps_an_epoch: int
    validates_every: int
    draws_every: int


class Plan(NamedTuple):
    """The training that fits into the remaining time.

    Attributes:
        total_steps: optimiser steps of the run.
        num_epochs: epochs of the run; the last one may be cut short.
        evaluates: whether this epoch may validate and draw when due; if not, both are left to the last epoch, which would not
            fit otherwise.
    """

    total_steps: int
    num_epochs: int
    evaluates: bool


def plan(at: Position, seconds: Seconds, remaining: float, worth: float) -> Plan:
    """Plan full epochs with the work after each, then as much of another as leaves time for the end of the run.

    Args:
        at: current position.
        seconds: expected durations.
        remaining: seconds left, including the work after the last step.
        worth: minimum seconds of training for which another epoch is started.

    Returns:
        The plan, with ``total_steps == at.steps`` if training has to end now.
    """
    usable = remaining - seconds.validation - seconds.epoch_end - seconds.pictures - seconds.storing
    left = max(0, int(usable / seconds.step))
    here = Plan(at.steps + min(left, at.to_epoch_end), at.epoch + 1, True)
    after = usable - at.to_epoch_end * seconds.step - seconds.epoch_end
    if after < max(worth, seconds.step):
        return here
    due = ((seconds.validation, at.validates_every), (seconds.pictures, at.draws_every))
    look = sum(taken for taken, every in due if every and (at.epoch + 1) % every == 0)
    evaluates = after - look >= max(worth, seconds.step)
    after -= look if evaluates else 0.0
    between = seconds.epoch_end + _share(seconds.validation, at.validates_every) + _share(seconds.pictures, at.draws_every)
    whole, rest = divmod(max(0.0, after), at.steps_an_epoch * seconds.step + between)
    part = min(at.steps_an_epoch, int(rest / seconds.step))
    steps = here.total_steps + int(whole) * at.steps_an_epoch + part
    return Plan(steps, at.epoch + 1 + int(whole) + (part > 0), evaluates)


def _share(seconds: float, every: int) -> float:
    return seconds / every if every else 0.0
