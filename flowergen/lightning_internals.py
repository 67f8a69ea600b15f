"""What we use of Lightning 2 that its documentation does not promise. tests/test_lightning_internals.py says what has moved."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

EPOCHS_DONE = ("loops", "fit_loop", "epoch_progress", "current", "processed")  # where a checkpoint has their number


def batches_begun(trainer: "Trainer") -> int:
    """Of the present epoch, as a resumed checkpoint has it."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def set_num_epochs(trainer: "Trainer", num: int) -> None:
    """Training ends after so many epochs."""
    trainer.fit_loop.max_epochs = num


def end_epoch_after(trainer: "Trainer", num_batches: int) -> None:
    """The present epoch has so many batches, and is validated."""
    trainer.fit_loop.max_batches = trainer.val_check_batch = num_batches
    trainer.check_val_every_n_epoch = 1


def allow_unused_parameters(trainer: "Trainer") -> None:
    """Under DDP, a backward pass may leave parameters without a gradient."""
    options = getattr(trainer.strategy, "_ddp_kwargs", None)  # of no other strategy
    if options is not None:
        options["find_unused_parameters"] = True


def begin_next_epoch(checkpoint: dict[str, Any], epochs_done: int) -> None:
    """Write into a checkpoint's loops that ``epochs_done`` epochs are over and the next has not begun.

    Inside ``on_train_epoch_end`` the counters say "almost done", and which hooks Lightning 2.6 repeats or leaves out on
    such a state depends on whether there was a validation. Between epochs there is nothing to guess.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    for counts in fit_loop["epoch_progress"].values():
        counts.update(dict.fromkeys(counts, epochs_done))
    batches = fit_loop["epoch_loop.batch_progress"]
    batches["current"].update(dict.fromkeys(batches["current"], 0))
    batches["total"].update(dict.fromkeys(batches["total"], batches["total"]["ready"]))
    batches["is_last_batch"] = False
