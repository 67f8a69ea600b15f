"""Variations, walks and edits from Python, see ``LoadedModel``."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowergen.data.class_names import class_label
from flowergen.errors import UserError
from flowergen.evaluation import edits, walks
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.nn.latent_space import slerp
from flowergen.randomness import normal_per_sample
from flowergen.runs.sampling import OF_DIFFUSION, check_sampling, sampling_of

if TYPE_CHECKING:
    from flowergen.runs.loaded_model import LoadedModel


def variations(model: "LoadedModel", x: Tensor, num: int, scale: float | None, seed: int) -> Tensor:
    """Decode z = mu + sqrt(scale) sigma eps, (N num, C, H, W)."""
    posterior = walks.encode(model.module, x)
    eps = normal_per_sample(range(num), posterior.mean.shape[1:], seed=seed, purpose="variation").to(posterior.mean)
    if scale is None:
        scale = walks.scale_that_shows(model.module, posterior, walks.decode(model.module, posterior.mean), eps)
    return walks.decode_variations(model.module, posterior, scale, eps).flatten(0, 1)


def interpolations(model: "LoadedModel", x: Tensor, num: int) -> Tensor:
    """Decode num steps from each latent to the next, ((N - 1) num, C, H, W)."""
    if len(x) < 2:
        raise UserError("interpolate() goes from one picture to the next: give two pictures or more")
    mean, t = walks.encode(model.module, x).mean, torch.linspace(0, 1, num)
    return torch.cat([walks.decode(model.module, slerp(a, b, t)) for a, b in pairwise(mean)])


def how_to_edit(
    model: "LoadedModel", classes: Sequence[str | int] | None, num: int, seed: int, options: dict[str, Any]
) -> edits.How:
    """Return what the functions of ``evaluation.edits`` need to know.

    Raises:
        UserError: the model does not denoise, or does not support an option.
    """
    module = model.module
    if not isinstance(module, LatentDDPMModule):
        raise UserError("pictures are edited with a diffusion model, and this is none: use vary()")
    config = {**dict.fromkeys(OF_DIFFUSION), **options}
    check_sampling(config, model.config["model"], [], {})
    if classes is None:
        labels = [module.num_classes]
    else:
        labels = [class_label(name, model.class_names) for name in ([classes] if isinstance(classes, (str, int)) else classes)]
    if not labels or num < 1:
        raise UserError("classes must name at least one class, or be None, and num must be at least 1")
    return edits.How(module, torch.tensor(labels), num, seed, sampling_of(config, module))
