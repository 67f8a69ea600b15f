"""How much training fits into a time budget: durations as measured, the plan, and the line that announces it."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

WINDOW_STEPS = 100  # their mean duration predicts that of the next steps
EPOCH_END_SECONDS = 1.0  # until measured: checkpoint, curves, logs
MIN_EPOCH_SHARE = 0.02  # fraction of the budget; no further epoch is started for less
REPLANS = 50  # per run, more often close to its end


class Seconds(NamedTuple):
    """Durations in seconds.

    Attributes:
        step: one optimiser step.
        validation: one validation.
        epoch_end: the other work after every epoch.
        pictures: drawing, with what has to be fitted for it, and evaluation, after the last epoch and those in which they are
            due.
        storing: what is computed and stored once training has ended.
    """

    step: float
    validation: float
    epoch_end: float
    pictures: float
    storing: float


class EndDurations(NamedTuple):
    """Expected durations of the work at the end of a run, see ``Seconds``; 0 for a validation that was not timed."""

    validation: float
    pictures: float
    storing: float


class Durations:
    """Collects the durations of a session, in seconds.

    Args:
        slow_steps: number of steps at the beginning that are not measured.

    Attributes:
        validation: the last validation; 0 until it is known.
        step_began: when the current optimiser step began; None before the first one.
        epoch_ended: when the last epoch ended; None once the next one has begun.
    """

    def __init__(self, slow_steps: int) -> None:
        self.validation = 0.0
        self.step_began: float | None = None
        self.epoch_ended: float | None = None
        self._slow_steps, self._slow_step = slow_steps, 0.0  # the last slow one is used until another step is measured
        self._steps: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._epoch_end = EPOCH_END_SECONDS
        self._pictures = self._storing = 0.0
        self._with_pictures: float | None = None  # duration of an epoch end that drew all of them

    def step_done(self, now: float) -> None:
        """Record an optimiser step that ended ``now``."""
        assert self.step_began is not None
        if self._slow_steps:
            self._slow_steps, self._slow_step = self._slow_steps - 1, now - self.step_began
        else:
            self._steps.append(now - self.step_began)
        self.step_began = now

    def epoch_began(self, now: float, drawn: Sequence[bool]) -> None:
        """Record the end of the epoch before the one that began ``now``.

        Args:
            now: when the first step of the epoch began.
            drawn: for each callback that draws, whether it has drawn after the epoch before.
        """
        assert self.epoch_ended is not None
        taken = now - self.epoch_ended
        if all(drawn) and drawn:
            self._with_pictures = taken
        elif any(drawn):  # a lower bound: the last epoch draws all of them
            self._pictures = max(self._pictures, taken - self._epoch_end)
        else:
            self._epoch_end = taken
        if self._with_pictures is not None:  # recomputed, because _epoch_end is a guess until measured
            self._pictures = max(0.0, self._with_pictures - self._epoch_end)
        self.step_began, self.epoch_ended = now, None

    def end_timed(self, now: float, end: EndDurations) -> None:
        """Take what was timed of the end of the run, which delayed the next step until ``now``."""
        self.validation, self._pictures = end.validation or self.validation, end.pictures or self._pictures
        self._storing, self.step_began = end.storing, now

    def seconds(self, validates: bool) -> Seconds:
        """Return the expected durations, that of a validation as 0 for a run that does not validate."""
        step = sum(self._steps) / len(self._steps) if self._steps else self._slow_step
        return Seconds(step, self.validation if validates else 0.0, self._epoch_end, self._pictures, self._storing)


class Position(NamedTuple):
    """Current position in training.

    Attributes:
        steps: optimiser steps done.
        epoch: index of this epoch, from 0.
        to_epoch_end: optimiser steps to the end of this epoch.
        steps_per_epoch: optimiser steps of a full epoch.
        validates_every, draws_every: intervals in epochs; 0 for never.
    """

    steps: int
    epoch: int
    to_epoch_end: int
    steps_per_epoch: int
    validates_every: int
    draws_every: int


class Plan(NamedTuple):
    """The training that fits into the remaining time.

    Attributes:
        total_steps: optimiser steps of the run.
        num_epochs: epochs of the run; the last one may be cut short.
        evaluates: whether this epoch may validate and draw when due; if not, both are left to the last epoch, which would not
            fit otherwise.
        next_plan: number of optimiser steps after which to plan again.
    """

    total_steps: int
    num_epochs: int
    evaluates: bool
    next_plan: int


def plan(at: Position, seconds: Seconds, remaining: float, budget: float) -> Plan:
    """Plan full epochs with the work after each, then as much of another as leaves time for the end of the run.

    Args:
        at: current position.
        seconds: expected durations.
        remaining: seconds left, including the work after the last step.
        budget: seconds of the whole run.

    Returns:
        The plan, with ``total_steps == at.steps`` if training has to end now.
    """
    min_epoch = max(MIN_EPOCH_SHARE * budget, seconds.step)
    usable = remaining - seconds.validation - seconds.epoch_end - seconds.pictures - seconds.storing
    left = max(0, int(usable / seconds.step))
    total_steps, num_epochs, evaluates = at.steps + min(left, at.to_epoch_end), at.epoch + 1, True
    after = usable - at.to_epoch_end * seconds.step - seconds.epoch_end
    if after >= min_epoch:
        due = ((seconds.validation, at.validates_every), (seconds.pictures, at.draws_every))
        due_seconds = sum(taken for taken, every in due if every and (at.epoch + 1) % every == 0)
        evaluates = after - due_seconds >= min_epoch
        after -= due_seconds if evaluates else 0.0
        between = seconds.epoch_end + _share(seconds.validation, at.validates_every) + _share(seconds.pictures, at.draws_every)
        whole, rest = divmod(max(0.0, after), at.steps_per_epoch * seconds.step + between)
        part = min(at.steps_per_epoch, int(rest / seconds.step))
        total_steps += int(whole) * at.steps_per_epoch + part
        num_epochs += int(whole) + (part > 0)
    steps_to_next_plan = min((total_steps - at.steps) // 10, int(budget / REPLANS / seconds.step))
    return Plan(total_steps, num_epochs, evaluates, at.steps + max(1, steps_to_next_plan))


def _share(seconds: float, every: int) -> float:
    return seconds / every if every else 0.0


def announcement(budget: float, remaining: float, images_per_second: float, made: Plan) -> str:
    """Return the line that announces the first plan, with the time at which the budget ends."""
    left = timedelta(seconds=max(0, round(remaining)))  # the start may have taken longer than the budget
    return (
        f"budget of {timedelta(seconds=budget)}: {images_per_second:,.0f} images/s, about {made.total_steps:,} steps "
        f"in {made.num_epochs} epochs; it ends at {datetime.now() + left:%H:%M:%S}, ETA {left}"
    )


def seconds_spent(checkpoint: dict[str, Any]) -> float:
    """Return how much of the run's budget was spent at a checkpoint; 0 if the run had no budget."""
    return checkpoint.get("callbacks", {}).get("Budget", {}).get("spent_seconds", 0.0)
