"""Computations of the tab Mix: interpolation between latents of several pictures, and class arithmetic.

A value from a browser that is invalid, or not supported by the model, raises a ``UserError``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flowergen.errors import UserError
from flowergen.explorer import validation
from flowergen.explorer.generating import SEEDS, labels_of
from flowergen.explorer.model import ExplorerModel
from flowergen.nn.latent_space import slerp
from flowergen.runs.sampling import DIFFUSION_OPTIONS, latent_sampler

MAX_INGREDIENTS = 8
MAX_STRENGTH = 2.0  # largest strength of class arithmetic; 1 adds the difference of the class means itself
STEPS_PER_PAIR = 8  # pictures from one ingredient to the next


@dataclass(frozen=True)
class Ingredient:
    """A picture or sample that is mixed.

    Attributes:
        latent: (C, h, w).
        picture: (C, H, W) in [0, 1], decoded from the latent.
        caption: description for the user.
    """

    latent: Tensor
    picture: Tensor
    caption: str


def from_picture(explorer: ExplorerModel, x: Tensor, caption: str) -> Ingredient:
    """Encode a picture (1, C, H, W) in [0, 1]."""
    return _decoded(explorer, explorer.model.encode(x).mean, caption)


def from_sample(explorer: ExplorerModel, label: Any, seed: Any) -> Ingredient:
    """Return the first sample of a seed and a class, None for any, by the model's own sampling settings."""
    seed = validation.whole("The seed", seed, 0, SEEDS)
    classes = None if label is None else [label]
    labels = labels_of(explorer, classes, 1)
    config = {**dict.fromkeys(DIFFUSION_OPTIONS), "source": "auto", "seed": seed}
    with torch.inference_mode():
        z = latent_sampler(config, explorer.model, explorer.store, bool(classes)).draw([0], labels)
    return _decoded(explorer, z, f"{explorer.class_name(int(labels[0])) or 'sample'}, seed {seed}")


def add(ingredients: Sequence[Ingredient], new: Sequence[Ingredient]) -> list[Ingredient]:
    """Return all ingredients in one list.

    Raises:
        UserError: there are too many.
    """
    if len(ingredients) + len(new) > MAX_INGREDIENTS:
        raise UserError(f"at most {MAX_INGREDIENTS} pictures are mixed: remove some first")
    return [*ingredients, *new]


def mix(explorer: ExplorerModel, ingredients: Sequence[Ingredient], place: Any, plus: Any, minus: Any, strength: Any) -> Tensor:
    """Return the picture at a place between the ingredients, moved from one class towards another, (1, C, H, W).

    Args:
        explorer: the model.
        ingredients: one or more.
        place: from 0 at the first to 1 at the last; neighbours are equally far apart.
        plus: class whose mean latent is added; None for none.
        minus: class whose mean latent is subtracted; None for none.
        strength: factor on the difference of the means.
    """
    if not ingredients:
        raise UserError("add a picture or a sample first")
    position = validation.real("The place", place, 0, 1) * (len(ingredients) - 1)
    first = min(int(position), max(0, len(ingredients) - 2))
    a, b = ingredients[first].latent, ingredients[min(first + 1, len(ingredients) - 1)].latent
    z = slerp(a, b, torch.tensor([position - first]))
    z = z + validation.real("Strength", strength, 0, MAX_STRENGTH) * (_mean(explorer, plus, z) - _mean(explorer, minus, z))
    return explorer.model.decode(z).cpu()


def interpolate(explorer: ExplorerModel, ingredients: Sequence[Ingredient]) -> Tensor:
    """Return pictures interpolated from each ingredient to the next, ((N - 1) STEPS_PER_PAIR, C, H, W).

    Raises:
        UserError: there are fewer than two.
    """
    if len(ingredients) < 2:
        raise UserError("a walk goes from one picture to the next: add two or more")
    t = torch.linspace(0, 1, STEPS_PER_PAIR)
    latents = [slerp(a.latent, b.latent, t) for a, b in pairwise(ingredients)]
    return explorer.model.decode(torch.cat(latents)).cpu()


def _decoded(explorer: ExplorerModel, z: Tensor, caption: str) -> Ingredient:
    return Ingredient(z[0].cpu(), explorer.model.decode(z)[0].cpu(), caption)


def _mean(explorer: ExplorerModel, label: Any, like: Tensor) -> Tensor:
    if label is None:
        return torch.zeros_like(like)
    (label,) = validation.labels([label], explorer.class_names)
    if label not in explorer.class_means:
        raise UserError(f"class {explorer.class_name(label)} has no stored latent, and so no mean: choose another")
    return explorer.class_means[label].to(like)
