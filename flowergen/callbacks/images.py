"""Image grids drawn during training."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray

from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.evaluation.sampling import first_samples, sampler_in_training
from flowergen.modules.image_model import ImageModel
from flowergen.modules.run_state import Drawing
from flowergen.viz.grids import captioned, comparison_grid, image_grid, write_png


@runtime_checkable
class PictureLogger(Protocol):
    """Any logger that accepts pictures."""

    def log_picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a picture, uint8 (H, W, 3), of a step, ``optimizer_steps`` of the module."""


class ImageGrids(Callback):
    """Reconstructions of fixed validation pictures and samples from fixed noise, as PNG and in every ``PictureLogger``.

    A caption says how the samples are drawn, see ``sampler_in_training``.

    Args:
        folder: folder of the PNG files.
        every_epochs: interval in epochs, in addition to the last epoch.
        num_reconstructions: pictures in the reconstruction grid, real above reconstructed.
        num_samples: pictures in the sample grid.
    """

    def __init__(self, folder: str | Path, every_epochs: int, num_reconstructions: int, num_samples: int):
        self.folder = Path(folder)
        self.every_epochs, self.num_reconstructions, self.num_samples = every_epochs, num_reconstructions, num_samples
        self._disk = ToleratedWrite("a picture")

    def on_fit_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Say what will be drawn."""
        pl_module.run_state.drawings[self.state_key] = Drawing(self.every_epochs, self.num_samples)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Draw both grids."""
        epoch, may_draw = trainer.current_epoch + 1, pl_module.run_state.may_draw
        if trainer.is_global_zero and ((may_draw and epoch % self.every_epochs == 0) or epoch == trainer.max_epochs):
            self.draw(trainer, pl_module, epoch)

    @torch.no_grad()
    def draw(self, trainer: Trainer, pl_module: ImageModel, epoch: int) -> None:
        """Write ``reconstruction_epoch_0001.png``, ``generated_epoch_0001.png`` and so on."""
        was_training = pl_module.training
        pl_module.eval()
        data = trainer.datamodule  # type: ignore[attr-defined]
        x = data.validation_images(self.num_reconstructions).to(pl_module.device)
        x_hat = pl_module.decode(pl_module.encode(x).mean)
        sampler = sampler_in_training(pl_module, data)
        samples = first_samples(sampler, self.num_samples)
        pl_module.train(was_training)
        columns = max(1, round(self.num_samples**0.5))
        for name, grid in (
            ("reconstruction", comparison_grid(x, x_hat, columns=len(x))),
            ("generated", captioned(image_grid(samples, columns=columns), sampler.description)),
        ):
            with self._disk:
                write_png(self.folder / f"{name}_epoch_{epoch:04d}.png", grid)
            for logger in trainer.loggers:
                if isinstance(logger, PictureLogger):
                    logger.log_picture(name, grid, pl_module.optimizer_steps)
