"""TensorBoard logger that tolerates a full disk."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, except that it is disabled and training continues if its file cannot be written.

    Args:
        **kwargs: arguments of ``TensorBoardLogger``.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._disabled = self._only_hyperparameters = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write scalars."""
        with self._disabled_on_error() as enabled:
            if enabled and not self._only_hyperparameters:
                super().log_metrics(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write the HPARAMS tab; its metrics are not logged again as scalars, as Lightning would do."""
        with self._disabled_on_error() as enabled:
            if enabled:
                self._only_hyperparameters = True
                super().log_hyperparams(*args, **kwargs)
                self._only_hyperparameters = False

    def log_picture(self, name: str, pixels: Any, step: int) -> None:
        """Write a picture, see ``PictureLogger``."""
        with self._disabled_on_error() as enabled:
            if enabled:
                self.experiment.add_image(name, pixels, step, dataformats="HWC")

    def finalize(self, status: str) -> None:
        """Flush buffered output."""
        with self._disabled_on_error() as enabled:
            if enabled:
                super().finalize(status)

    @contextmanager
    def _disabled_on_error(self) -> Iterator[bool]:
        # permanently: the writer thread dies at its first error, and every later call would wait for it or raise it again
        try:
            yield not self._disabled
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps errors from scalars
            if not isinstance(cause, OSError):
                raise
            self._disabled = True
            log.warning(
                f"TensorBoard's file could not be written ({cause.strerror or cause}): training continues, without further "
                "output for TensorBoard until it is resumed; make room on the disk"
            )
