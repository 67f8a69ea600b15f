"""A full disk is no reason to lose a training run: what cannot be written is said once, and training goes on."""

import logging
from types import TracebackType

log = logging.getLogger(__name__)


class DiskTrouble:
    """A context manager around the writing of a file that training can do without.

    An ``OSError`` inside is one line in the log, the first time in a row; that writing works again is another.

    Args:
        what: is written, as the subject of a sentence: "loss_plot.png".
    """

    def __init__(self, what: str):
        self.what = what
        self.failing = False

    def __enter__(self) -> None:
        """Try."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if error is not None and not isinstance(error, OSError):
            return False
        if error is not None and not self.failing:
            log.warning(
                f"{self.what} could not be written ({error.strerror or error}): training goes on; make room on the disk"
            )
        elif error is None and self.failing:
            log.info(f"{self.what} is written again")
        self.failing = error is not None
        return True
