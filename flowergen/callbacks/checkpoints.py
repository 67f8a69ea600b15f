"""Callback that writes last.ckpt, best.ckpt and, if configured, epoch_XXXX.ckpt."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from flowergen.callbacks.metrics_csv import MetricsCsv
from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.files import flush
from flowergen.lightning_internals import begin_next_epoch
from flowergen.modules.image_model import ImageModel


class Checkpoints(Checkpoint):
    """Saves only where training can resume bit-identically: after a batch within an epoch, and between two epochs.

    It replaces Lightning's ``ModelCheckpoint``, which may save in the middle of an epoch's end, renames ``last.ckpt`` to
    ``last-v1.ckpt`` next to a stale one, and loses the best value when a run folder has moved. It derives from ``Checkpoint``
    because Lightning runs those after the module's ``on_train_epoch_end``.

    Args:
        folder: folder of the checkpoints.
        checkpoint_every_steps: interval in optimiser steps at which ``last.ckpt`` is also written; 0 for never.
        keep_every_epochs: interval in epochs at which ``epoch_XXXX.ckpt`` is kept; 0 for never.
    """

    def __init__(self, folder: str | Path, checkpoint_every_steps: int, keep_every_epochs: int):
        self.folder = Path(folder)
        self.checkpoint_every_steps, self.keep_every_epochs = checkpoint_every_steps, keep_every_epochs
        self.best_value: float | None = None
        self.saved_at_step = 0
        self._between_epochs = False
        self._disk = ToleratedWrite("a checkpoint")

    # -- when to save

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save within an epoch if due; the end of an epoch is saved after validation."""
        steps = pl_module.optimizer_steps
        due = self.checkpoint_every_steps and steps - self.saved_at_step >= self.checkpoint_every_steps
        whole_step = (batch_idx + 1) % pl_module.accumulation_steps == 0
        if (due or pl_module.run_state.stop_signal) and whole_step and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Save between two epochs, after validation."""
        epoch, best_before = trainer.current_epoch + 1, self.best_value
        further_copies = pl_module.run_state.checkpoint_copies
        copies = ["best.ckpt"] if self._improved(trainer, pl_module) else []
        if self.keep_every_epochs and epoch % self.keep_every_epochs == 0:
            copies.append(f"epoch_{epoch:04d}.ckpt")
        self._between_epochs = True
        if not self._save(trainer, pl_module, [*copies, *further_copies]):
            self.best_value = best_before
            for restore in further_copies.values():
                restore()
        further_copies.clear()
        self._between_epochs = False

    def _improved(self, trainer: Trainer, pl_module: ImageModel) -> bool:
        if not pl_module.eligible_as_best:
            return False
        value = float(trainer.callback_metrics.get(f"val/{pl_module.best_metric}", math.nan))
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return False  # no validation in this epoch: the value is an old one
        sign = 1 if pl_module.best_mode == "max" else -1
        if not math.isfinite(value) or (self.best_value is not None and sign * value <= sign * self.best_value):
            return False
        self.best_value = value
        return True

    # -- saving

    def _save(self, trainer: Trainer, pl_module: ImageModel, copies: Sequence[str] = ()) -> bool:
        """Save, and return whether that succeeded. If the disk is full, the last checkpoint stays until the next is due."""
        self.saved_at_step = pl_module.optimizer_steps
        partial = self.folder / "last.ckpt.partial"
        pl_module.stop_if_not_finite(check_weights=True)
        with self._disk:
            try:
                trainer.save_checkpoint(partial)
            except OSError:
                trainer.strategy.barrier()  # the one at the end of save_checkpoint, where the other processes wait
                raise
            if trainer.is_global_zero:
                self._publish(trainer, partial, copies)
        pl_module.run_state.checkpoint_failed = self._disk.failing
        if self._disk.failing:
            for leftover in self.folder.glob("*.partial"):
                leftover.unlink(missing_ok=True)
        return not self._disk.failing

    def _publish(self, trainer: Trainer, partial: Path, copies: Sequence[str]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.flush_pending()  # the checkpoint stores its number of rows
        for name in copies:
            shutil.copyfile(partial, self.folder / f"{name}.partial")
        (self.folder.parent / "weights.safetensors").unlink(missing_ok=True)  # from an earlier end of this run
        # last.ckpt comes last: if the run is killed before it, all of this is repeated; after it, nothing is left to do
        for name in copies:
            _publish(self.folder / f"{name}.partial", self.folder / name)
        _publish(partial, self.folder / "last.ckpt")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: ImageModel, checkpoint: dict[str, Any]) -> None:
        """Store the number of rows of metrics.csv, and put Lightning's loops into a state that it resumes exactly."""
        rows = [logger.num_rows for logger in trainer.loggers if isinstance(logger, MetricsCsv)]
        checkpoint.setdefault("flowergen", {})["metrics_csv_rows"] = rows[0] if rows else 0
        if self._between_epochs:
            begin_next_epoch(checkpoint, trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"best_value": self.best_value, "saved_at_step": self.saved_at_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self.best_value, self.saved_at_step = state_dict["best_value"], state_dict["saved_at_step"]


def _publish(partial: Path, path: Path) -> None:
    """Flush a file to disk and rename it: at any moment ``path`` is either the old file or the new one."""
    flush(partial)
    partial.replace(path)
