"""Progress of training: its speed and the time left."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import progress as rich_progress
from rich.console import Console

from flowergen.data.progress_bar import REPORT_INTERVAL_SECONDS
from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """Shows a bar with images/s and the time left on a terminal, and logs a line for each epoch.

    Without a terminal, a line is also logged every half minute within a long epoch.

    Deriving from Lightning's ``ProgressBar`` replaces the default bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: rich_progress.Progress | None = None

    def disable(self) -> None:
        """Disable the bar; Lightning calls this on all processes except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo ``disable``."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._bar is not None:
            self._bar.print(*args)

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Start the clock and, on a terminal, the bar."""
        self._started = self._last_report = time.monotonic()
        self._batches_done = 0
        self._rate = 0.0
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("epoch {task.fields[epoch]}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[rate]:,.0f} images/s, ETA"),
                rich_progress.TextColumn("{task.fields[eta]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("train", total=None, epoch="", rate=0.0, eta="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Report the previous epoch, whose averages are known only now, and restart the measurement of images/s."""
        self._report_epoch(trainer, pl_module, trainer.current_epoch)
        self._epoch_started, self._epoch_images = time.monotonic(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the bar, or log the progress if there is none."""
        if not hasattr(self, "_epoch_started"):  # resumed within an epoch
            self._epoch_started, self._epoch_images = time.monotonic(), 0
        self._batches_done += 1
        self._epoch_images += len(batch.label) * trainer.world_size
        self._rate = self._epoch_images / (time.monotonic() - self._epoch_started)
        epoch = self._epoch_count(trainer, pl_module, trainer.current_epoch + 1)
        if self._bar is not None:
            done, total = pl_module.optimizer_steps, pl_module.total_steps
            eta = self._eta(pl_module)
            self._bar.update(self._task, completed=done, total=total, epoch=epoch, rate=self._rate, eta=eta)
        elif trainer.is_global_zero and time.monotonic() - self._last_report >= REPORT_INTERVAL_SECONDS:
            self._last_report = time.monotonic()
            of = f"batch {batch_idx + 1:,}/{int(trainer.num_training_batches):,}"
            log.info(f"epoch {epoch}  {of}  {self._rate:,.0f} images/s  ETA {self._eta(pl_module)}")

    def on_train_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Report the last epoch."""
        self._report_epoch(trainer, pl_module, trainer.current_epoch)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: ImageModel, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def _report_epoch(self, trainer: Trainer, pl_module: ImageModel, epochs_done: int) -> None:
        if not (trainer.is_global_zero and self._batches_done):
            return
        for logger in trainer.loggers:
            logger.log_metrics({"perf/images_per_second": self._rate}, step=pl_module.optimizer_steps)
        shown = ("train_epoch/loss", "val/loss", "val/psnr", "val/elbo", "trainset/psnr", "trainset/elbo")
        metrics = pl_module.epoch_metrics
        values = "  ".join(f"{name} {metrics[name]:.5g}" for name in shown if name in metrics)
        eta = self._eta(pl_module)
        self._last_report = time.monotonic()
        if self._bar is not None:  # it would overlap with the line
            self._bar.stop()
        log.info(f"epoch {self._epoch_count(trainer, pl_module, epochs_done)}  {values}  {self._rate:,.0f} images/s  ETA {eta}")
        if self._bar is not None:
            self._bar.start()

    def _epoch_count(self, trainer: Trainer, pl_module: ImageModel, number: int) -> str:
        """Return e.g. ``3/10``, or ``3`` with a budget, where the number of epochs is known only at the end."""
        return str(number) if pl_module.run_state.budget_ends is not None else f"{number}/{trainer.max_epochs}"

    def _eta(self, pl_module: ImageModel) -> timedelta:
        """Return the time to the end of training, or with a budget, to the end of the command."""
        ends = pl_module.run_state.budget_ends
        if ends is not None:
            return timedelta(seconds=max(0, round(ends - time.monotonic())))
        seconds_per_step = (time.monotonic() - self._started) / self._batches_done * pl_module.accumulation_steps
        return timedelta(seconds=round(seconds_per_step * (pl_module.total_steps - pl_module.optimizer_steps)))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
