"""The exceptions that users are meant to read, and the one that ends a command when the system asks for it."""

import signal


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong and what to do.

    Every command prints the message alone, without a traceback, and exits with status 2. Any other exception is a bug of
    ours and keeps its traceback.
    """


class TrainingEnded(UserError):
    """A ``UserError`` after training has begun: no refusal any more, so that the run's record says how it ended."""


class Stopped(BaseException):
    """The process was asked to end by a signal, and has put its work in order.

    Args:
        signum: of the signal; a command exits with 128 more, as a shell reports it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum
