"""The exceptions that are shown to users, and the one that ends a command after a signal."""

import signal

MAX_ERROR_LENGTH = 1500  # characters of an error


class UserError(Exception):
    """An error that the user can fix: the message is one line that says what is wrong and what to do.

    Every command prints only the message, without a traceback, and exits with status 2. Any other exception is a bug in
    flowergen and keeps its traceback.
    """


class TrainingEnded(UserError):
    """A ``UserError`` after training has begun. The run's provenance records it as how training ended, not as a refusal."""


class Stopped(BaseException):
    """The process was asked to terminate by a signal, and has saved its work. The status is 128 + signal, as in a shell."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


def printable(text: str) -> str:
    r"""Escape unprintable characters, which file names may contain, for a one-line message.

    >>> printable("Blüte\n")
    'Blüte\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Return an exception's message without line breaks and control characters; long ones are cut in the middle."""
    text = printable(" ".join(str(error).split()))
    half = MAX_ERROR_LENGTH // 2
    return text if len(text) <= MAX_ERROR_LENGTH else f"{text[:half]} ... {text[-half:]}"
