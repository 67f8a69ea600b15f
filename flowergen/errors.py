"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong and what to do.

    Every command prints the message alone, without a traceback, and exits with status 2. Any other exception is a bug of
    ours and keeps its traceback.
    """
