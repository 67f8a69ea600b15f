"""Tolerance of a full disk: a file that cannot be written is reported once, and training continues."""

import logging
from types import TracebackType

log = logging.getLogger(__name__)


class ToleratedWrite:
    """Context manager for writing a file that training does not depend on.

    An ``OSError`` is suppressed. The first of consecutive failures is logged in one line, and so is the next success.

    Args:
        what: name of the file, the subject of a sentence, such as "loss_plot.png".
    """

    def __init__(self, what: str):
        self.what = what
        self.failing = False

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if error is not None and not isinstance(error, OSError):
            return False
        if error is not None and not self.failing:
            log.warning(
                f"{self.what} could not be written ({error.strerror or error}): training continues; make room on the disk"
            )
        elif error is None and self.failing:
            log.info(f"{self.what} can be written again")
        self.failing = error is not None
        return True
