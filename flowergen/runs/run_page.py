"""Update the page of a run folder, for the commands that add to it."""

from pathlib import Path

from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder


def write_page(run: RunFolder) -> Path:
    """Rewrite ``index.html``; if a process is training in the folder, the page reloads itself. May raise an ``OSError``."""
    from flowergen.evaluation.run_page import write_run_page

    try:
        with run.locked():
            training = False
    except UserError:  # or the folder is read-only
        training = True
    return write_run_page(run.path, training)
