"""Callback that fits a training run into a time budget."""

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch import Callback, Trainer

from flowergen.callbacks.budget_plan import Plan, Position, Seconds, plan
from flowergen.callbacks.evaluation import PeriodicEvaluation
from flowergen.callbacks.images import ImageGrids
from flowergen.callbacks.rehearsal import rehearse
from flowergen.lightning_internals import end_epoch_after, set_num_epochs
from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)

FIRST_PLAN_STEPS = 3  # the first step is slow and not measured
WINDOW_STEPS = 100  # their mean duration predicts that of the next steps
REPLANS = 50  # per run, more often close to its end
WORTH = 0.02  # fraction of the budget; no further epoch is started for less
EPOCH_END_SECONDS = 1.0  # until measured: checkpoint, curves, logs


class Budget(Callback):
    """Fits a run into a time budget, from the start of the command to the last file, by calling ``plan`` repeatedly.

    The plan sets the horizon of the learning rate schedule. It uses the measured durations of steps, validations and pictures;
    a small part of the work at the end of the run is timed at its beginning. The last epoch may end after any whole optimiser
    step, followed by validation, pictures and a checkpoint. The first process decides for all.

    Args:
        seconds: budget of the run, over all its sessions.
        started: when the command started, by ``clock``; None for now.
        clock: returns the time in seconds.
    """

    def __init__(self, seconds: float, started: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock = seconds, clock
        self.started = clock() if started is None else started
        self.spent_before = 0.0
        self.over = False
        self._planned = False
        self._total_steps: int | None = None
        self._steps: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._last_step: float | None = None
        self._epoch_ended: float | None = None
        self._next_check = 0
        self._validation = self._pictures = self._storing = 0.0
        self._epoch_end = EPOCH_END_SECONDS
        self._with_pictures: float | None = None  # duration of an epoch end that drew all of them

    @property
    def remaining(self) -> float:
        """Seconds left in the budget."""
        return self.seconds - self.spent_before - (self.clock() - self.started)

    # -- timing

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Save the settings that the plan depends on, and tell when the budget ends."""
        pl_module.run_state.budget_ends = self.clock() + self.remaining
        self._validates_every = (trainer.check_val_every_n_epoch or 1) if trainer.enable_validation else 0
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._drawing = [each for each in callbacks if isinstance(each, ImageGrids | PeriodicEvaluation) and each.every_epochs]
        self._next_check = pl_module.optimizer_steps + FIRST_PLAN_STEPS
        self._began: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageModel, batch: Any, batch_idx: int) -> None:
        """Record how long the end of the previous epoch took."""
        now = self.clock()
        if self._began is None:
            self._began, self._first_step = now, pl_module.optimizer_steps
            if self._total_steps is not None:  # from the previous session, for the learning rate until there is a plan
                pl_module.total_steps = self._total_steps
        if self._epoch_ended is not None:
            taken, self._epoch_ended = now - self._epoch_ended, None
            may_draw = pl_module.run_state.may_draw
            drawn = [may_draw and trainer.current_epoch % each.every_epochs == 0 for each in self._drawing]
            if all(drawn) and drawn:
                self._with_pictures = taken
            elif any(drawn):  # a lower bound: the last epoch draws all of them
                self._pictures = max(self._pictures, taken - self._epoch_end)
            else:
                self._epoch_end = taken
            if self._with_pictures is not None:  # recomputed, because _epoch_end is a guess until measured
                self._pictures = max(0.0, self._with_pictures - self._epoch_end)
            self._allow_evaluation(trainer, pl_module, True)
            self._last_step = now
            self._next_check = pl_module.optimizer_steps + 1  # the epoch's end may have taken longer than before

    def on_validation_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Start timing the validation."""
        self._validation_started = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Stop timing the validation."""
        self._validation = self.clock() - self._validation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Start timing the epoch's end; the other callbacks and the module run after this one."""
        self._epoch_ended = self.clock()

    # -- the plan

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the plan when due, and end the epoch and the run when the time is up."""
        if (batch_idx + 1) % pl_module.accumulation_steps:
            return
        now, steps = self.clock(), pl_module.optimizer_steps
        if self._last_step is not None:
            self._steps.append(now - self._last_step)
        self._last_step = now
        ends_epoch = batch_idx + 1 >= trainer.num_training_batches
        if steps < self._next_check and not ends_epoch:
            return
        decided: Any = (self._plan(trainer, pl_module, batch_idx), self._next_check) if trainer.is_global_zero else None
        made, self._next_check = trainer.strategy.broadcast(decided)
        pl_module.total_steps = self._total_steps = made.total_steps
        set_num_epochs(trainer, made.num_epochs)
        if not self._planned:
            self._planned = True
            pl_module.check_total_steps()
        if made.total_steps <= steps:
            self.over = True
            end_epoch_after(trainer, batch_idx + 1)
        elif ends_epoch and not made.evaluates:
            self._allow_evaluation(trainer, pl_module, False)

    def _plan(self, trainer: Trainer, pl_module: ImageModel, batch_idx: int) -> Plan:
        """Compute the plan in the first process, and set when to plan again."""
        assert self._began is not None
        steps = pl_module.optimizer_steps
        mean = (self.clock() - self._began) / (steps - self._first_step)
        mean = sum(self._steps) / len(self._steps) if self._steps else mean
        if not self._planned:
            validates = bool(self._validates_every) and not self._validation
            part = rehearse(trainer, pl_module, self._drawing, validates, self.clock)
            self._validation, self._pictures = part.validation or self._validation, part.pictures or self._pictures
            self._storing, self._last_step = part.storing, self.clock()
        batches = int(trainer.num_training_batches)
        at = Position(
            steps,
            trainer.current_epoch,
            (batches - batch_idx - 1) // pl_module.accumulation_steps,
            batches // pl_module.accumulation_steps,
            self._validates_every,
            max((each.every_epochs for each in self._drawing), default=0),  # usually, all of them draw then
        )
        validation = self._validation if self._validates_every else 0.0
        seconds = Seconds(mean, validation, self._epoch_end, self._pictures, self._storing)
        made = plan(at, seconds, self.remaining, WORTH * self.seconds)
        between_looks = min((made.total_steps - steps) // 10, int(self.seconds / REPLANS / mean))
        self._next_check = steps + max(1, between_looks)
        if not self._planned:
            rate = trainer.datamodule.batch_size / mean  # type: ignore[attr-defined]
            left = timedelta(seconds=max(0, round(self.remaining)))  # the start may have taken longer than the budget
            log.info(
                f"budget of {timedelta(seconds=self.seconds)}: {rate:,.0f} images/s, about {made.total_steps:,} steps "
                f"in {made.num_epochs} epochs; it ends at {datetime.now() + left:%H:%M:%S}, ETA {left}"
            )
        return made

    def _allow_evaluation(self, trainer: Trainer, pl_module: ImageModel, allowed: bool) -> None:
        """Let validation and drawing take place after this epoch if they are due, or leave both to the last epoch."""
        never = trainer.current_epoch + 2  # this epoch's number is not a multiple of it
        trainer.check_val_every_n_epoch = (self._validates_every or 1) if allowed else never
        pl_module.run_state.may_draw = allowed

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent, which are the whole budget once the last epoch is over, and the plan's horizon."""
        spent = self.seconds if self.over else self.seconds - self.remaining
        return {"spent_seconds": spent, "total_steps": self._total_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self.spent_before, self._total_steps = state_dict["spent_seconds"], state_dict["total_steps"]


def seconds_spent(checkpoint: dict[str, Any]) -> float:
    """Return how much of the run's budget was spent at a checkpoint; 0 if the run had no budget."""
    return checkpoint.get("callbacks", {}).get("Budget", {}).get("spent_seconds", 0.0)
