"""torch.compile of the training steps."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)


def compile_parts(module: ImageModel) -> None:
    """Replace a model's ``parts_to_compile`` by compiled ones, in place; each is compiled at its first call."""
    for owner, name in module.parts_to_compile:
        setattr(owner, name, torch.compile(getattr(owner, name)))


class CompiledSteps(Callback):
    """Compiles what a training step calls, while the model is trained. Checkpoints are the same as without compilation.

    Outside of training steps everything runs eagerly: validation and pictures use other modes and sizes, each of which would
    take another minute to compile. Until training ends, a copy of the model would share its compiled parts.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Mark the model's parts for compilation."""
        compile_parts(pl_module)
        torch.compiler.set_stance("force_eager")
        if trainer.is_global_zero and pl_module.parts_to_compile:
            log.info("compiling: the first step takes about a minute, and so do steps with new shapes or losses")

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageModel, batch: Any, batch_idx: int) -> None:
        """Enable compiled code for a training step."""
        torch.compiler.set_stance("default")

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Disable compiled code outside of training steps."""
        torch.compiler.set_stance("force_eager")

    def on_exception(self, trainer: Trainer, pl_module: ImageModel, exception: BaseException) -> None:
        """Restore the model: Lightning does not call ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: ImageModel, stage: str) -> None:
        """Restore the model and the default."""
        for owner, name in pl_module.parts_to_compile:
            vars(owner).pop(name, None)  # behind it is the method of the class
        torch.compiler.set_stance("default")
