"""Start a new run from the weights of another, ``init=RUN``."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.runs.loaded_model import LoadedModel

log = logging.getLogger(__name__)

# suffixes of tensors with a row for each class; embeddings have one more row, for "no class"
PER_CLASS_TENSORS = ("embed.label.weight", "class_projection.embed.weight", "class_head.weight", "class_head.bias", "centers")
MAX_NAMED = 4  # tensors named in a message


def start_from(parent: LoadedModel, module: ImageModel, class_names: Sequence[str]) -> None:
    """Copy the parent's weights to a new model: its moving average if it has one, to the network and to the moving average.

    Tensors are matched by name and shape. Rows of classes are matched by the classes' names; a class that the parent does not
    have starts from the mean of the parent's classes. What is copied and what is not is logged.

    Raises:
        UserError: the parent is a model of another kind, denoises other latents, or has no tensor in common.
    """
    where = f"init={parent.run.path}"
    if type(parent.module) is not type(module):
        raise UserError(f"{where} is a {type(parent.module).__name__}, not a {type(module).__name__}: leave model= out")
    if module.denoises and parent.module.latents_fingerprint != module.latents_fingerprint:
        raise UserError(f"{where} denoises the latents of another autoencoder: leave autoencoder= out")
    theirs, ours = parent.module.state_dict(), module.state_dict()
    copied, missing = {}, []
    for name, tensor in ours.items():
        plain = name.removeprefix("ema.")
        found = theirs.get(f"ema.{plain}", theirs.get(plain))
        if found is not None and name.endswith(PER_CLASS_TENSORS):
            found = _rows_by_name(found, parent.class_names, class_names)
        if found is None or found.shape != tensor.shape:
            missing.append(name)
        else:
            copied[name] = found
    if not copied:
        raise UserError(f"{where} has no weights of the same names and shapes")
    module.load_state_dict(ours | copied)
    log.info(f"starting from {parent.run.path}: {len(copied)} of {len(ours)} tensors")
    if missing:
        shown = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        log.info(f"{len(missing)} tensors have no counterpart of the same shape, and keep their initial values: {shown}")
    new = [name for name in class_names if name not in parent.class_names]
    if any(name.endswith(PER_CLASS_TENSORS) for name in copied) and class_names:
        log.info(
            f"{len(class_names) - len(new)} of {len(class_names)} classes have a counterpart of the same name"
            + ("; the others start from the mean of the classes" if new else "")
        )


def _rows_by_name(rows: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """Return (len(now) + e, ...) rows from (len(before) + e, ...), where e is 1 if the last row means "no class"."""
    of_classes, others = rows[: len(before)], rows[len(before) :]
    mean = (of_classes if len(before) else others).mean(0)
    label_of = {name: label for label, name in enumerate(before)}
    return (
        torch.cat((torch.stack([of_classes[label_of[name]] if name in label_of else mean for name in now]), others))
        if now
        else others
    )
