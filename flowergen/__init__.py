"""flowergen: train generative image models on a few thousand pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from flowergen.errors import UserError

if TYPE_CHECKING:
    from flowergen.runs.loading import LoadedModel

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"


def load(run: str | Path, device: str = "cpu") -> "LoadedModel":
    """Load a trained model.

    Args:
        run: a run folder, whose ``best.ckpt`` (else ``last.ckpt``) is loaded, a ``.ckpt`` file in one, or a shared run of the
            Hugging Face hub, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``, which is downloaded to ``outputs/hub``.
        device: of the model.

    Returns:
        An object with ``encode``, ``decode``, ``sample`` and ``config``.

    Raises:
        UserError: there is no such run, it cannot be downloaded, or its files are damaged.
    """
    from flowergen.runs.loading import load_run  # imported here to keep importing flowergen fast

    return load_run(run, device)
