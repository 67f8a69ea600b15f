"""The HTML page of a run, updated during training."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.evaluation.run_page import write_run_page
from flowergen.modules.image_model import ImageModel


class RunPage(Callback):
    """Writes ``index.html`` after every epoch; it reloads itself until training ends.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._disk = ToleratedWrite("index.html")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Write the results of the previous epoch."""
        self._write(trainer, training=True)

    def on_train_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Write the final page, with the last pictures."""
        self._write(trainer, training=False)

    def on_exception(self, trainer: Trainer, pl_module: ImageModel, exception: BaseException) -> None:
        """Write a page that no longer reloads itself."""
        self._write(trainer, training=False)

    def _write(self, trainer: Trainer, training: bool) -> None:
        if trainer.is_global_zero:
            with self._disk:
                write_run_page(self.folder, training)
