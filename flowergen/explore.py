"""``python -m flowergen.explore``: a trained model in the browser."""

import socket
import sys
from importlib.util import find_spec

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Explore
from flowergen.app.plain_command import read_command_line
from flowergen.errors import UserError
from flowergen.runs.run_folder import find_run

HOST = "127.0.0.1"


def main() -> None:
    """Check the options, load the model, and serve its page until Ctrl-C."""
    config = read_command_line("explore", Explore, sys.argv[1:])
    find_run(config["run"])
    if find_spec("gradio") is None:
        raise UserError("flowergen.explore needs gradio: pip install 'flowergen[app]'")
    _check_free(config["port"])

    from flowergen.explorer.server import serve

    serve(config["run"], HOST, config["port"])


def _check_free(port: int) -> None:
    """Refuse a port that another program listens on, or that is reserved, before the model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port={port} cannot be used ({error.strerror}): give another, such as port={port + 1}") from error


if __name__ == "__main__":
    one_line_errors(main)
