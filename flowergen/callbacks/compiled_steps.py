"""torch.compile of the training steps."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)


class CompiledSteps(Callback):
    """Compiles the networks that a training step calls, in place, so that checkpoints are the same as without compilation.

    Outside of training steps everything runs eagerly: validation and pictures use other modes and sizes, each of which would
    take another minute to compile.

    Args:
        cuda_graphs: record each network's forward and backward pass as a CUDA graph, and replay it. A step's outputs and
            gradients are overwritten by the next step's, so gradients must not be accumulated over steps.
    """

    def __init__(self, cuda_graphs: bool = False):
        self.cuda_graphs = cuda_graphs

    def on_fit_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Mark the networks for compilation, which happens at their first call."""
        for network in pl_module.networks_to_compile:
            network.compile(mode="reduce-overhead" if self.cuda_graphs else "default")
        torch.compiler.set_stance("force_eager")
        if trainer.is_global_zero:
            log.info("compiling: the first step takes about a minute, and so do steps with new shapes or losses")

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageModel, batch: Any, batch_idx: int) -> None:
        """Enable compiled code for a training step."""
        torch.compiler.set_stance("default")
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Disable compiled code outside of training steps."""
        torch.compiler.set_stance("force_eager")
        if self.cuda_graphs:  # the next step overwrites the gradients, and after an error Lightning would read them
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()

    def on_exception(self, trainer: Trainer, pl_module: ImageModel, exception: BaseException) -> None:
        """Restore the default: Lightning does not call ``teardown`` after an exception."""
        torch.compiler.set_stance("default")

    def teardown(self, trainer: Trainer, pl_module: ImageModel, stage: str) -> None:
        """Restore the default."""
        torch.compiler.set_stance("default")
