"""The lines of a training run where there is no terminal; tests/test_train.py reads those of a whole run."""

from types import SimpleNamespace

import pytest

from flowergen.callbacks import progress
from flowergen.callbacks.progress import Progress
from flowergen.modules.run_state import RunState


def test_a_long_epoch_says_how_far_it_is_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten seconds a batch: after 30 and 60 seconds; and an epoch's own line counts as one."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    caplog.set_level("INFO")
    trainer = SimpleNamespace(
        is_global_zero=True, world_size=1, current_epoch=0, max_epochs=2, num_training_batches=8, loggers=[]
    )
    module = SimpleNamespace(
        accumulation_steps=1, optimizer_steps=0, total_steps=16, epoch_metrics={"train_epoch/loss": 0.5}, run_state=RunState()
    )
    observer = Progress()
    observer.on_train_start(trainer, module)  # type: ignore[arg-type]
    observer.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
    for batch_idx in range(8):
        clock.now += 10
        module.optimizer_steps += 1
        observer.on_train_batch_end(trainer, module, None, SimpleNamespace(label=range(64)), batch_idx)  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == [
        "epoch 1/2  batch 3/8  6 images/s  ETA 0:02:10",
        "epoch 1/2  batch 6/8  6 images/s  ETA 0:01:40",
    ]
    trainer.current_epoch = 1
    observer.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
    clock.now += 20
    observer.on_train_batch_end(trainer, module, None, SimpleNamespace(label=range(64)), 0)  # type: ignore[arg-type]
    assert [record.message.split("  ")[:2] for record in caplog.records[2:]] == [["epoch 1/2", "train_epoch/loss 0.5"]]
    module.run_state.budget_ends = clock.now + 90
    clock.now += 30
    observer.on_train_batch_end(trainer, module, None, SimpleNamespace(label=range(64)), 1)  # type: ignore[arg-type]
    assert caplog.records[-1].message == "epoch 2  batch 2/8  3 images/s  ETA 0:01:00", "until the budget is used up"
