"""What ``train`` says, and what it keeps from the terminal."""

import logging
import shlex
import threading
import warnings
from typing import TYPE_CHECKING

from flowergen.config.run_folder import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.modules.image_model import ImageModel


def essentials(
    datamodule: "ImageDataModule", module: "ImageModel", trainer: "Trainer", run: RunFolder, budget: str | None
) -> str:
    """What is about to be trained, on what and where, a line each."""
    import torch

    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    device = f"{trainer.num_devices * trainer.num_nodes} x {trainer.strategy.root_device.type}"
    threads = f", {torch.get_num_threads()} threads" if trainer.strategy.root_device.type == "cpu" else ""
    tf32 = ", float32 matrices in TF32" if torch.get_float32_matmul_precision() == "high" else ""
    return "\n".join(
        [
            f"data       {datamodule.summary()}",
            f"model      {type(module).__name__}: {module.summary()}, {parameters:,} parameters",
            f"training   {budget or f'{trainer.max_epochs} epochs'}, batches of {datamodule.batch_size}",
            f"device     {device}{threads}, precision {trainer.precision}{tf32}",
            f"run folder {run.path}",
        ]
    )


def last_good(run: RunFolder) -> str:
    """Where to go on from after numbers that are not finite."""
    from flowergen.config.build import read_checkpoint, steps_done

    last = run.checkpoints / "last.ckpt"
    if not last.is_file():
        return "there was no checkpoint yet"
    step = steps_done(read_checkpoint(last))
    return f"the last good checkpoint is {last} of step {step:,}: go on from it by {shlex.quote(f'resume={run.path}')}"


def farewell(run: RunFolder, budget: str | None) -> str:
    """Where everything lies, and how to go on."""
    lines = ["done"]
    for what, path in (
        ("page", run.page),
        ("pictures", run.images),
        ("checkpoints", run.checkpoints),
        ("numbers", run.metrics),
    ):
        if path.exists():
            lines.append(f"{what:<12} {path}")
    if run.tensorboard.exists():
        lines.append(f"look closer  tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    more = "trainer.budget" if budget else "trainer.max_epochs"
    lines.append(f"go on        python -m flowergen.train {shlex.quote(f'resume={run.path}')} {more}=...")
    return "\n".join(lines)


def quieten() -> None:
    """Lightning's advice that does not hold here: batches come from a memory map, and our order is resumable."""
    threading.excepthook = _without_disk_trouble
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # says in four lines what our error says in one
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # the moving average
        ".*sync_dist=True.*",  # what is logged has been summed over the devices
        ".*treespec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def _without_disk_trouble(error: threading.ExceptHookArgs) -> None:
    """What ends a thread goes to the terminal, but for the full disk of TensorBoard's: its next call says so in a line."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
