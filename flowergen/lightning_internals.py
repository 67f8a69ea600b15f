"""Our uses of undocumented internals of Lightning 2. tests/test_lightning_internals.py detects changes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

EPOCHS_DONE_KEYS = ("loops", "fit_loop", "epoch_progress", "current", "processed")  # keys of the count in a checkpoint
WARNINGS = (  # parts of the texts of warnings that do not apply: batches come from a memory map, and our order is resumable
    "does not have many workers",
    "dataloader is not resumable",
    "smaller than the logging interval",
    "in eval mode at the start of training",  # the moving average is in eval mode
    "sync_dist=True",  # logged values are already summed over the devices
    "treespec",  # Lightning's own use of torch
)


def batches_begun(trainer: "Trainer") -> int:
    """Return the number of batches begun in the current epoch, which a resumed checkpoint restores."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def precision_of(module: "LightningModule") -> str | None:
    """Return the trainer's precision, such as ``16-mixed``; None without a trainer."""
    return getattr(module._trainer, "precision", None)


def set_num_epochs(trainer: "Trainer", num: int) -> None:
    """End training after ``num`` epochs."""
    trainer.fit_loop.max_epochs = num


def end_epoch_after(trainer: "Trainer", num_batches: int) -> None:
    """End the current epoch after ``num_batches`` batches, and validate it."""
    trainer.fit_loop.max_batches = trainer.val_check_batch = num_batches
    trainer.check_val_every_n_epoch = 1


def allow_unused_parameters(trainer: "Trainer") -> None:
    """Allow backward passes under DDP that leave parameters without a gradient."""
    options = getattr(trainer.strategy, "_ddp_kwargs", None)  # only DDP has it
    if options is not None:
        options["find_unused_parameters"] = True


def begin_next_epoch(checkpoint: dict[str, Any], epochs_done: int) -> None:
    """Set the loop counters of a checkpoint to ``epochs_done`` finished epochs and no batch of the next.

    Inside ``on_train_epoch_end`` the counters say "almost done", and which hooks Lightning 2.6 repeats or skips when resuming
    from that state depends on whether there was a validation. Between epochs, the state is unambiguous.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    for counts in fit_loop["epoch_progress"].values():
        counts.update(dict.fromkeys(counts, epochs_done))
    batches = fit_loop["epoch_loop.batch_progress"]
    batches["current"].update(dict.fromkeys(batches["current"], 0))
    batches["total"].update(dict.fromkeys(batches["total"], batches["total"]["ready"]))
    batches["is_last_batch"] = False
