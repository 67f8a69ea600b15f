"""Terminal output of ``train``, and messages that it suppresses."""

import logging
import shlex
import threading
import warnings
from typing import TYPE_CHECKING

from flowergen.lightning_internals import WARNINGS
from flowergen.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.modules.image_model import ImageModel


def essentials(
    datamodule: "ImageDataModule", module: "ImageModel", trainer: "Trainer", run: RunFolder, budget: str | None
) -> str:
    """Summarise data, model, training, device and run folder, one line each."""
    import torch

    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    device = f"{trainer.num_devices * trainer.num_nodes} x {trainer.strategy.root_device.type}"
    threads = f", {torch.get_num_threads()} threads" if trainer.strategy.root_device.type == "cpu" else ""
    tf32 = ", float32 matrices in TF32" if torch.get_float32_matmul_precision() == "high" else ""
    return (
        f"data       {datamodule.summary()}\n"
        f"model      {type(module).__name__}: {module.summary()}, {parameters:,} parameters\n"
        f"training   {budget or f'{trainer.max_epochs} epochs'}, batches of {datamodule.batch_size}\n"
        f"device     {device}{threads}, precision {trainer.precision}{tf32}\n"
        f"run folder {run.path}"
    )


def last_good(run: RunFolder) -> str:
    """Describe the checkpoint to resume from after non-finite values."""
    from flowergen.runs.loading import read_checkpoint, steps_done

    last = run.checkpoints / "last.ckpt"
    if not last.is_file():
        return "there was no checkpoint yet"
    step = steps_done(read_checkpoint(last))
    return f"the last good checkpoint is {last} of step {step:,}: resume from it with {shlex.quote(f'resume={run.path}')}"


def closing_summary(run: RunFolder, budget: str | None) -> str:
    """List the run's files and the command that continues training."""
    files = {"page": run.page, "pictures": run.images, "checkpoints": run.checkpoints, "numbers": run.metrics}
    lines = ["done", *(f"{what:<12} {path}" for what, path in files.items() if path.exists())]
    if run.tensorboard.exists():
        lines.append(f"TensorBoard  tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    more = "trainer.budget" if budget else "trainer.max_epochs"
    lines.append(f"continue     python -m flowergen.train {shlex.quote(f'resume={run.path}')} {more}=...")
    return "\n".join(lines)


def silence_warnings() -> None:
    """Silence what does not apply to our runs, or repeats what we print in one line."""
    threading.excepthook = _ignore_os_errors
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for client in ("httpx", "httpx2"):  # HTTP clients of the hub's packages, which log each request
        logging.getLogger(client).setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # repeats our one-line error in four lines
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")


def _ignore_os_errors(error: threading.ExceptHookArgs) -> None:
    """Print an exception that ends a thread, except on a full disk, which TensorBoard's next call reports in one line."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
