"""The wrapper of every command: reports errors in one line."""

import os
import signal
import sys
from collections.abc import Callable

from flowergen.errors import Stopped, UserError, one_line


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command. ``UserError`` gives one line and status 2, Ctrl-C status 130, SIGTERM 143; bugs keep their traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra shortens the tracebacks of bugs
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(Stopped(signal.SIGINT).status)
    except Stopped as stopped:
        sys.exit(stopped.status)
