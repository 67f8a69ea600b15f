"""Files that cannot be written while a model trains; whole runs are in test_train.py."""

import errno
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowergen.callbacks.checkpoints import Checkpoints
from flowergen.callbacks.evaluation import PeriodicEvaluation
from flowergen.callbacks.tensorboard import TensorBoard
from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.modules.run_state import RunState

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_trouble_is_a_line_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """However often it happens; an error of another kind is none of it."""
    caplog.set_level(logging.INFO)
    disk = ToleratedWrite("loss_plot.png")
    for fails in (True, True, True, False, False, True):
        with disk:
            if fails:
                raise FULL
    first, over, again = caplog.messages
    assert (
        first
        == again
        == ("loss_plot.png could not be written (No space left on device): training continues; make room on the disk")
    )
    assert over == "loss_plot.png can be written again"
    with pytest.raises(ZeroDivisionError), disk:
        raise ZeroDivisionError


class Disk:
    """A Trainer whose checkpoints are empty files, on a disk that may be full."""

    world_size, is_global_zero, check_val_every_n_epoch, num_training_batches = 1, True, 1, 8
    loggers: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.full, self.current_epoch, self.barriers = False, 0, 0
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.strategy = SimpleNamespace(barrier=self.count)

    def count(self) -> None:
        self.barriers += 1

    def save_checkpoint(self, path: Path) -> None:
        path.write_text(str(self.current_epoch))
        if self.full:
            raise FULL


MODULE: Any = SimpleNamespace(
    optimizer_steps=0,
    accumulation_steps=1,
    best_metric="elbo",
    best_mode="max",
    eligible_as_best=True,
    stop_if_not_finite=lambda **options: None,
    run_state=RunState(),
)


def test_what_could_not_be_saved_was_not_the_best(tmp_path: Path) -> None:
    """The files before stay, nothing half lies about, and a worse epoch that can be saved is the best until a better one is."""
    checkpoints = Checkpoints(tmp_path, checkpoint_every_steps=0, keep_every_epochs=0)
    evaluation = PeriodicEvaluation(tmp_path, 1, 4, "efficientnet", "", "fid")
    evaluation.best, evaluation._best_before = 3.0, 7.0
    trainer: Any = Disk()
    for epoch, elbo, full in ((0, 1.0, False), (1, 3.0, True), (2, 2.0, False), (3, math.nan, False)):
        trainer.current_epoch, trainer.full = epoch, full
        trainer.callback_metrics = {"val/elbo": torch.tensor(elbo)}
        MODULE.run_state.checkpoint_copies["best_fid.ckpt"] = evaluation.restore_best
        checkpoints.on_train_epoch_end(trainer, MODULE)
        assert not MODULE.run_state.checkpoint_copies
        assert MODULE.run_state.checkpoint_failed == full
        if epoch == 0:
            assert evaluation.best == 3.0
        if full:
            assert evaluation.best == 7.0
            assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
                ("last.ckpt", "best.ckpt", "best_fid.ckpt"), "0"
            )
    assert (tmp_path / "best.ckpt").read_text() == "2"
    assert (tmp_path / "last.ckpt").read_text() == "3"
    assert trainer.barriers == 1, "the other processes wait where save_checkpoint ends"


def test_tensorboard_says_once_that_it_has_had_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that comes later touches a writer whose thread is dead."""
    board = TensorBoard(save_dir=str(tmp_path), name="", version="")
    board.log_metrics({"a": 1.0}, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise FULL

    monkeypatch.setattr(board.experiment, "add_scalar", full)
    board.log_metrics({"a": 2.0}, 2)
    assert len(caplog.messages) == 1
    assert "training continues, without further output for TensorBoard until it is resumed" in caplog.messages[0]
    for name in ("add_scalar", "add_image", "flush", "close", "add_hparams"):
        monkeypatch.setattr(board.experiment, name, None)
    board.log_metrics({"a": 3.0}, 3)
    board.log_picture("x", None, 3)
    board.log_hyperparams({"a": 1}, {})
    board.finalize("success")
    assert len(caplog.messages) == 1
