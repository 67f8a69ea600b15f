"""The page of a run folder, for the commands that add to it."""

from flowergen.config.run_folder import RunFolder
from flowergen.data.listing import printable


def rewrite_page(run: RunFolder) -> list[str]:
    """Write ``index.html`` again; of a run that is training, as such.

    Returns:
        A line that says where it lies; none where the folder is read-only or full.
    """
    from flowergen.evaluation.run_page import write_run_page

    try:
        path = write_run_page(run.path, training=str(run.exit()).startswith("running"))
    except OSError:
        return []
    return [f"page: {printable(str(path))}"]
