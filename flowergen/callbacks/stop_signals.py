"""SIGINT, SIGTERM and SLURM's requeue signal: training ends after a whole optimiser step, with a checkpoint."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer

from flowergen.errors import Stopped
from flowergen.modules.image_model import ImageModel


class StopSignals(Callback):
    """Ends training between two optimiser steps after a signal to stop.

    ``Checkpoints`` saves when the signal is ``RunState.stop_signal``, at the end of the step, or of the epoch if that was its
    last step. A second Ctrl-C ends the process at once. Lightning itself would stop within a batch and save within a signal
    handler.

    SLURM's SIGUSR1 (``sbatch --signal=SIGUSR1@90``) does the same, and then Lightning's plug-in requeues the job.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Install the signal handlers."""
        self._state = pl_module.run_state
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if SLURMEnvironment.detect() else [])]
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._interrupted:
            os._exit(Stopped(signum).status)
        self._interrupted = self._interrupted or signum == signal.SIGINT
        if not self._state.received_signal:
            self._state.received_signal = signum
            again = "; interrupt again to stop immediately" if signum == signal.SIGINT else ""
            # not with the logging module, which this may have interrupted
            os.write(2, f"\n{signal.Signals(signum).name}: training ends after this step{again}\n".encode())

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Agree among processes at the end of an optimiser step, before ``Checkpoints`` runs."""
        if (batch_idx + 1) % pl_module.accumulation_steps:
            return
        self._state.stop_signal = self._state.received_signal
        if trainer.world_size > 1:
            received = torch.tensor(self._state.received_signal, device=trainer.strategy.root_device)
            self._state.stop_signal = int(trainer.strategy.reduce(received, reduce_op="max"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageModel, batch: Any, batch_idx: int) -> None:
        """Stop training; the checkpoint is written.

        Raises:
            Stopped: instead of the next step.
        """
        if not self._state.stop_signal:
            return
        requeue = self._previous_handlers.get(signal.SIGUSR1)
        self._restore_handlers()
        if self._state.stop_signal == signal.SIGUSR1 and callable(requeue):
            requeue(signal.SIGUSR1, None)  # it first saves another checkpoint, in the middle of Lightning's loop
            for copy in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                copy.unlink(missing_ok=True)
        raise Stopped(self._state.stop_signal)

    def on_train_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: ImageModel, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
