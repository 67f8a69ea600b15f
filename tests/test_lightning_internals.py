"""Each of Lightning's undocumented parts that we use, by what it does, so that a failure names the one that has moved."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from flowergen import lightning_internals


class Line(LightningModule):
    """y = w x, with a validation; counts its batches by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.batches: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.batches.append(self.trainer.current_epoch)
        return (self.w * batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.trainer.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    given = {"max_epochs": 3, "num_sanity_val_steps": 0, "accelerator": "cpu", "check_val_every_n_epoch": 5} | options
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **given, **quiet)


def fit(trainer: Trainer, module: Line, checkpoint: Path | None = None) -> None:
    loaders = (torch.utils.data.DataLoader(torch.ones(num, 2), batch_size=None) for num in (6, 1))
    trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)


class After(Callback):
    """Does something after a batch of an epoch."""

    def __init__(self, epoch: int, batch_idx: int, do: Any):
        self.at, self.do = (epoch, batch_idx), do

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            self.do(trainer)


def test_an_epoch_ends_where_it_is_told_to_and_is_validated(tmp_path: Path) -> None:
    """Set by ``fit_loop.max_batches``, ``val_check_batch`` and ``check_val_every_n_epoch``."""
    module = Line()
    end = After(1, 2, lambda trainer: lightning_internals.end_epoch_after(trainer, 3))
    fit(trainer_of(tmp_path, end, max_epochs=2), module)
    assert module.batches == [0] * 6 + [1] * 3
    assert module.validated == [1]


@pytest.mark.parametrize("num", [2, 5])
def test_the_number_of_epochs_can_be_changed_while_training(num: int, tmp_path: Path) -> None:
    """``fit_loop.max_epochs``."""
    module = Line()
    fit(trainer_of(tmp_path, After(0, 3, lambda trainer: lightning_internals.set_num_epochs(trainer, num))), module)
    assert module.batches == [epoch for epoch in range(num) for _ in range(6)]


def test_batches_begun_are_known_in_an_epoch_and_after_a_resume(tmp_path: Path) -> None:
    """``fit_loop.epoch_loop.batch_progress.current.ready``."""
    found: list[int] = []

    def save(trainer: Trainer) -> None:
        found.append(lightning_internals.batches_begun(trainer))
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(trainer_of(tmp_path, After(1, 3, save)), Line())

    class AtStart(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(lightning_internals.batches_begun(trainer))

    fit(trainer_of(tmp_path, AtStart()), Line(), tmp_path / "last.ckpt")
    assert found == [4, 4]


@pytest.mark.parametrize("validate_every", [1, 5])
def test_a_checkpoint_can_be_put_between_two_epochs(validate_every: int, tmp_path: Path) -> None:
    """The keys and counters of a checkpoint's ``loops``; the resumed run begins with the whole next epoch."""
    begun: list[int] = []

    class Begin(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            begun.append(trainer.current_epoch)

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            begun.append(-trainer.current_epoch)

    class AtEpochEnd(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            lightning_internals.begin_next_epoch(checkpoint, 2)

    fit(trainer_of(tmp_path, AtEpochEnd(), check_val_every_n_epoch=validate_every), Line())
    content: Any = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key in lightning_internals.EPOCHS_DONE_KEYS:
        content = content[key]
    assert content == 2
    module = Line()
    fit(trainer_of(tmp_path, Begin(), max_epochs=4, check_val_every_n_epoch=validate_every), module, tmp_path / "last.ckpt")
    assert module.batches == [2] * 6 + [3] * 6
    assert module.validated == ([2, 3] if validate_every == 1 else [])
    assert begun == [2, -2, 3, -3]


def test_unused_parameters_are_allowed_under_ddp_and_nothing_is_changed_elsewhere(tmp_path: Path) -> None:
    """``DDPStrategy._ddp_kwargs``, which it passes to torch."""
    trainer = trainer_of(tmp_path, strategy="ddp", devices=2)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.strategy._ddp_kwargs.get("find_unused_parameters") is not True
    lightning_internals.allow_unused_parameters(trainer)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True
    lightning_internals.allow_unused_parameters(trainer_of(tmp_path))


def test_a_module_has_the_precision_of_its_trainer(tmp_path: Path) -> None:
    line = Line()
    assert lightning_internals.precision_of(line) is None
    line.trainer = trainer_of(tmp_path, precision="bf16-mixed")
    assert lightning_internals.precision_of(line) == "bf16-mixed"


def test_the_warnings_that_are_silenced_exist() -> None:
    """In the source of Lightning, or of torch's trees; a text may be written in several parts."""
    files = [*Path(lightning.pytorch.__file__).parent.rglob("*.py"), Path(torch.utils._pytree.__file__)]
    source = "".join(path.read_text() for path in files)
    joined = re.sub(r'"\s+f?"', "", source)
    assert [text for text in lightning_internals.WARNINGS if text not in joined] == []
