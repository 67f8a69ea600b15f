"""The HPARAMS tab of TensorBoard."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from flowergen.modules.image_model import ImageModel


class FinalMetrics(Callback):
    """Writes the run's hyperparameters with its final validation metrics, to compare the runs of a sweep in a table.

    Args:
        hyperparameters: values by name.
    """

    def __init__(self, hyperparameters: dict[str, Any]):
        self.hyperparameters = hyperparameters

    def on_train_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Write them at the end of training."""
        prefixes = ("val/", "trainset/", "train_epoch/")
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.hyperparameters, metrics, step=pl_module.optimizer_steps)
