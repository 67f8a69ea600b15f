"""Callback that draws loss_plot.png from metrics.csv."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.modules.image_model import ImageModel
from flowergen.viz.curves import plot_curves


class LossPlot(Callback):
    """Redraws the curves after every epoch.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._disk = ToleratedWrite("loss_plot.png")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Draw the previous epoch, which the module adds to metrics.csv after the callbacks' ``on_train_epoch_end``."""
        self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Draw the last epoch."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        with self._disk:
            plot_curves(self.folder / "metrics.csv", self.folder / "loss_plot.png")
