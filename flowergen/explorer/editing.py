"""Computations of the tab Edit: an uploaded picture, its reconstruction, variations and edits.

In all functions ``x`` is the picture, (1, C, H, W) in [0, 1], or None if there is none yet. They raise a ``UserError`` if there
is none, or if a value, which comes from a browser, is invalid; ``vary`` also if the decoder ignores its latents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowergen.data.reading import UnreadablePicture, read_rgb
from flowergen.errors import UserError, printable
from flowergen.explorer import validation
from flowergen.explorer.generating import MAX_PICTURES, SEEDS, checked_sampling
from flowergen.explorer.model import TRAVERSED_SIGMAS, ExplorerModel

MAX_UPLOAD_BYTES = 32 * 2**20  # bytes
SCALES = (-3.0, 5.0)  # powers of ten of the scale of variations


def uploaded(explorer: ExplorerModel, path: Any) -> Tensor:
    """Read an uploaded file as the model's input, fitted as its training pictures were, (1, C, H, W) in [0, 1].

    Raises:
        UserError: there is no file, or it cannot be read as a picture.
    """
    if not isinstance(path, str) or not path:
        raise UserError("upload a picture first")
    try:
        image = explorer.model.fitted(read_rgb(Path(path)))
    except UnreadablePicture as error:
        raise UserError(f"this file cannot be read as a picture: {printable(str(error))}") from error
    return torch.from_numpy(image)[None].float() / 255


def reconstruct(explorer: ExplorerModel, x: Tensor | None) -> Tensor:
    """Return the reconstruction (1, C, H, W)."""
    x = _required(x)
    return explorer.model.decode(explorer.model.encode(x).mean).cpu()


def vary(explorer: ExplorerModel, x: Tensor | None, num: Any, power: Any, seed: Any) -> Tensor:
    """Return variations z = mu + sqrt(scale) sigma eps of a picture, (num, C, H, W).

    Args:
        explorer, x: see above.
        num: number of variations.
        power: the scale as a power of ten; None for a scale with a visible effect.
        seed: random seed for the noise.
    """
    scale = None if power is None else 10 ** validation.real("The power of ten", power, *SCALES)
    return explorer.model.vary(_required(x), _num(num), scale, _seed(seed)).cpu()


def img2img(
    explorer: ExplorerModel, x: Tensor | None, strength: Any, classes: Any, num: Any, seed: Any, options: Mapping[str, Any]
) -> Tensor:
    """Return the picture with noise added and removed again, for each class, (L num, C, H, W).

    Args:
        explorer: a diffusion model.
        x: see above.
        strength: fraction of the sampler's steps.
        classes: labels to edit towards; None or empty for no class.
        num: number of pictures for each class.
        seed: random seed for the noise.
        options: steps and guidance_scale, see ``checked_sampling``.
    """
    strength = validation.real("Strength", strength, 0, 1)
    return explorer.model.img2img(strength=strength, **_edit_arguments(explorer, x, classes, num, seed, options)).cpu()


def inpaint(
    explorer: ExplorerModel, x: Tensor | None, mask: Any, classes: Any, num: Any, seed: Any, options: Mapping[str, Any]
) -> Tensor:
    """Return the picture with the masked part inpainted, for each class, (L num, C, H, W).

    Args:
        explorer, x, classes, num, seed, options: see ``img2img``.
        mask: see ``mask_of``.
    """
    x = _required(x)
    painted = mask_of(mask, *explorer.module.picture_shape[1:])
    return explorer.model.inpaint(mask=painted, **_edit_arguments(explorer, x, classes, num, seed, options)).cpu()


def mask_of(mask: Any, height: int, width: int) -> Tensor:
    """Return the mask that was painted in the browser, (H, W) bool.

    Args:
        mask: a character for each pixel in row-major order, "1" where it is inpainted and "0" elsewhere.
        height, width: size of the picture, in px; a mask of another size is invalid, and so is an empty one.
    """
    if not isinstance(mask, str) or "1" not in mask:
        raise UserError("paint over the part of the picture that is to be replaced")
    if len(mask) != height * width or set(mask) - {"0", "1"}:
        raise UserError("the mask does not belong to this picture: upload the picture again")
    return torch.tensor([character == "1" for character in mask]).view(height, width)


def traverse(explorer: ExplorerModel, x: Tensor | None, sigmas: Any) -> Tensor:
    """Return the picture moved along the directions of the sliders, (1, C, H, W).

    Args:
        explorer: a model with stored latents.
        x: see above.
        sigmas: a number for each slider, in standard deviations of the stored latents.
    """
    directions = explorer.directions
    steps = torch.tensor([validation.real("A slider", value, -TRAVERSED_SIGMAS, TRAVERSED_SIGMAS) for value in sigmas])
    z = explorer.model.encode(_required(x)).mean.cpu()
    moved = z + ((steps * directions.std) @ directions.directions).view(1, *z.shape[1:])
    return explorer.model.decode(moved).cpu()


def _required(x: Tensor | None) -> Tensor:
    if x is None:
        raise UserError("upload a picture first")
    return x


def _edit_arguments(
    explorer: ExplorerModel, x: Tensor | None, classes: Any, num: Any, seed: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that both edits of ``LoadedModel`` take."""
    chosen = validation.labels(classes, explorer.class_names)
    if max(1, len(chosen)) * _num(num) > MAX_PICTURES:
        raise UserError(f"{len(chosen)} classes with {num:g} pictures each are more than {MAX_PICTURES}: choose fewer")
    sampling = checked_sampling(explorer, options)
    arguments: dict[str, Any] = {"x": _required(x), "classes": chosen or None, "num": _num(num), "seed": _seed(seed)}
    return {**arguments, "steps": sampling.steps, "guidance_scale": sampling.guidance_scale}


def _num(num: Any) -> int:
    return validation.whole("The number of pictures", num, 1, MAX_PICTURES)


def _seed(seed: Any) -> int:
    return validation.whole("The seed", seed, 0, SEEDS)
