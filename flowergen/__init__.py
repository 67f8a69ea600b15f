"""flowergen: train generative image models on a few thousand pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowergen.errors import UserError

if TYPE_CHECKING:
    from flowergen.runs.loaded_model import LoadedModel

__all__ = ["UserError", "__version__", "fit", "load"]
__version__ = "0.1.0"


def load(run: str | Path, device: str = "cpu") -> "LoadedModel":
    """Load a trained model.

    Args:
        run: a run folder, whose ``best.ckpt`` (else ``last.ckpt``) is loaded, a ``.ckpt`` file in one, or a shared run of the
            Hugging Face hub, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``, which is downloaded to ``outputs/hub``.
        device: device of the model.

    Returns:
        The model, with methods to encode, decode, sample and edit pictures.

    Raises:
        UserError: there is no such run, it cannot be downloaded, or its files are damaged.
    """
    from flowergen.runs.loading import load_run  # imported here to keep importing flowergen fast

    return load_run(run, device)


def fit(overrides: Sequence[str]) -> "LoadedModel":
    """Train a model, as ``python -m flowergen.train`` does with these options, and load it.

    Training is a process of its own, whose output is printed. An interrupt stops it after an optimiser step, with a checkpoint.

    Args:
        overrides: ``key=value`` options, such as ``["model=vae", "data=procedural"]`` or ``["resume=RUN"]``.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: an option is invalid, training failed, or it was interrupted; the message says how to continue.
    """
    from flowergen.app.fit import fit as fit_in_process

    return load(fit_in_process(overrides))
