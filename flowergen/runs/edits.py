"""Edits from Python, see ``LoadedModel``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from flowergen.data.class_names import class_label
from flowergen.errors import UserError
from flowergen.evaluation import edits
from flowergen.runs.sampling import DIFFUSION_OPTIONS, check_sampling, sampling_of

if TYPE_CHECKING:
    from flowergen.runs.loaded_model import LoadedModel


def edit_settings(
    model: "LoadedModel", classes: Sequence[str | int] | None, num: int, seed: int, options: dict[str, Any]
) -> edits.EditSettings:
    """Return the settings for the functions of ``evaluation.edits``.

    Raises:
        UserError: the model does not denoise, or does not support an option.
    """
    module = model.module.denoising_model
    if module is None:
        raise UserError("pictures are edited with a diffusion model, and this is none: use vary()")
    config = {**dict.fromkeys(DIFFUSION_OPTIONS), **options}
    check_sampling(config, model.config["model"], [], {})
    if classes is None:
        labels = [module.num_classes]
    else:
        labels = [class_label(name, model.class_names) for name in ([classes] if isinstance(classes, (str, int)) else classes)]
    if not labels or num < 1:
        raise UserError("classes must name at least one class, or be None, and num must be at least 1")
    return edits.EditSettings(module, torch.tensor(labels), num, seed, sampling_of(config, module))
