"""Callback that fits a training run into a time budget."""

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer

from flowergen.callbacks.budget_plan import Durations, Plan, Position, announcement, plan
from flowergen.callbacks.end_timing import time_end_of_run
from flowergen.lightning_internals import end_epoch_after, set_num_epochs
from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)

MEASURED_STEPS = 2  # before the first plan


class Budget(Callback):
    """Fits a run into a time budget, from the start of the command to the last file, by calling ``plan`` repeatedly.

    The plan sets the horizon of the learning rate schedule. It uses the measured durations of steps, validations and pictures;
    a small part of the work at the end of the run is timed at its beginning. The last epoch may end after any whole optimiser
    step, followed by validation, pictures and a checkpoint. The first process decides for all.

    Args:
        seconds: budget of the run, over all its sessions.
        started: when the command started, by ``clock``; None for now.
        clock: returns the time in seconds.
        slow_steps: number of steps at the beginning that are slow and not measured.
    """

    def __init__(
        self,
        seconds: float,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        slow_steps: int = 1,
    ):
        self.seconds, self.clock, self.slow_steps = seconds, clock, slow_steps
        self.started = clock() if started is None else started
        self.spent_before = 0.0
        self.over = False
        self._planned = False
        self._total_steps: int | None = None
        self._next_plan = 0
        self._durations = Durations(slow_steps)

    @property
    def remaining(self) -> float:
        """Seconds left in the budget."""
        return self.seconds - self.spent_before - (self.clock() - self.started)

    # -- timing

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Save the settings that the plan depends on, and tell when the budget ends."""
        pl_module.run_state.budget_ends = self.clock() + self.remaining
        self._validates_every = (trainer.check_val_every_n_epoch or 1) if trainer.enable_validation else 0
        self._drawings = [drawing for drawing in pl_module.run_state.drawings.values() if drawing.every_epochs]
        self._next_plan = pl_module.optimizer_steps + self.slow_steps + MEASURED_STEPS

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageModel, batch: Any, batch_idx: int) -> None:
        """Record when the first step began, and how long the end of the previous epoch took."""
        if self._durations.step_began is None:
            self._durations.step_began = self.clock()
            if self._total_steps is not None:  # from the previous session, for the learning rate until there is a plan
                pl_module.total_steps = self._total_steps
        if self._durations.epoch_ended is not None:
            may_draw = pl_module.run_state.may_draw
            drawn = [may_draw and trainer.current_epoch % drawing.every_epochs == 0 for drawing in self._drawings]
            self._durations.epoch_began(self.clock(), drawn)
            self._allow_evaluation(trainer, pl_module, True)
            self._next_plan = pl_module.optimizer_steps + 1  # the epoch's end may have taken longer than before

    def on_validation_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Start timing the validation."""
        self._validation_started = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Stop timing the validation."""
        self._durations.validation = self.clock() - self._validation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Start timing the epoch's end; the other callbacks and the module run after this one."""
        self._durations.epoch_ended = self.clock()

    # -- the plan

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the plan when due, and end the epoch and the run when the time is up."""
        if (batch_idx + 1) % pl_module.accumulation_steps:
            return
        self._durations.step_done(self.clock())
        steps, ends_epoch = pl_module.optimizer_steps, batch_idx + 1 >= trainer.num_training_batches
        if steps < self._next_plan and not ends_epoch:
            return
        made: Any = self._plan(trainer, pl_module, batch_idx) if trainer.is_global_zero else None
        made = trainer.strategy.broadcast(made)
        self._next_plan = made.next_plan
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
        """Compute the plan, in the first process."""
        if not self._planned:
            validates = bool(self._validates_every) and not self._durations.validation
            end = time_end_of_run(trainer, pl_module, self._drawings, validates, self.clock)
            self._durations.end_timed(self.clock(), end)
        batches = int(trainer.num_training_batches)
        at = Position(
            pl_module.optimizer_steps,
            trainer.current_epoch,
            (batches - batch_idx - 1) // pl_module.accumulation_steps,
            batches // pl_module.accumulation_steps,
            self._validates_every,
            max((drawing.every_epochs for drawing in self._drawings), default=0),  # usually, all of them draw then
        )
        seconds = self._durations.seconds(bool(self._validates_every))
        made = plan(at, seconds, self.remaining, self.seconds)
        if not self._planned:
            images_per_second = trainer.datamodule.batch_size / seconds.step  # type: ignore[attr-defined]
            log.info(announcement(self.seconds, self.remaining, images_per_second, made))
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
