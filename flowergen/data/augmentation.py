"""Augmentations of a whole batch in one call, each picture with parameters of its own.

torchvision's transforms, whose maths these are, draw one set of parameters for a batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

NUM_DRAWS = 4  # uniform numbers that one picture takes, for its colours and for its crop
HUE = 0.1  # of the strength, in turns of the colour circle: hues tell flowers apart, brightness does not
WIDEST = 4 / 3  # of a crop, as in Szegedy et al. 2015


def jitter_factors(u: np.ndarray, strength: float) -> np.ndarray:
    """What ``color_jitter`` does to each picture, as torchvision's ``ColorJitter`` draws it.

    Args:
        u: (M, 4) uniform in [0, 1).
        strength: s in [0, 1].

    Returns:
        (M, 4) float32: factors of brightness, contrast and saturation in [1 - s, 1 + s], turns of hue in [-s/10, s/10].
    """
    centre, width = np.array([1, 1, 1, 0]), strength * np.array([1, 1, 1, HUE])
    return (centre + width * (2 * u - 1)).astype(np.float32)


def color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, one after the other; torchvision shuffles the four.

    Args:
        x: (N, 3, H, W) in [0, 1].
        factors: (N, 4), see ``jitter_factors``.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    brightness, contrast, saturation, hue = factors[..., None, None, None].unbind(1)  # (N, 1, 1, 1) each
    x = (brightness * x).clamp(0, 1)
    x = _blend(x, rgb_to_grayscale(x).mean((1, 2, 3), keepdim=True), contrast)
    x = _blend(x, rgb_to_grayscale(x), saturation)
    return _turn_hue(x, hue)


def _blend(x: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    return (ratio * x + (1 - ratio) * other).clamp(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """To HSV, along the circle, and back (Smith 1978, "Color gamut transform pairs")."""
    value = x.amax(1, keepdim=True)  # (N, 1, H, W)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = (x / torch.where(chroma == 0, 1, chroma)).split(1, dim=1)
    is_red, is_green = x[:, :1] == value, x[:, 1:2] == value
    hue = torch.where(is_red, green - blue, torch.where(is_green, 2 + blue - red, 4 + red - green))  # in sixths of a turn
    k = (torch.arange(5, 0, -2, device=x.device)[:, None, None] + hue + 6 * turns) % 6  # (N, 3, H, W)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def crop_boxes(u: np.ndarray, areas: Sequence[float], size_px: int) -> np.ndarray:
    """Where ``resized_crop`` cuts each picture (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    As torchvision's ``RandomResizedCrop`` draws it, but that the ratio is drawn among those with which a box of its area fits,
    where torchvision draws both again until one does.

    Args:
        u: (M, 4) uniform in [0, 1).
        areas: smallest and largest share of the picture's area, in (0, 1].
        size_px: side S of the pictures.

    Returns:
        (M, 4) float32, whole numbers: top, left, height, width, within the picture, width / height from 3/4 to 4/3.
    """
    smallest, largest = areas
    area = smallest + (largest - smallest) * u[:, 0]
    widest = np.minimum(math.log(WIDEST), -np.log(area))  # (M,) log width / height
    ratio = np.exp((2 * u[:, 1] - 1) * widest)
    width, height = (np.rint(size_px * np.sqrt(side)).clip(1, size_px) for side in (area * ratio, area / ratio))
    top, left = np.floor(u[:, 2] * (size_px - height + 1)), np.floor(u[:, 3] * (size_px - width + 1))
    return np.stack((top, left, height, width), axis=1).astype(np.float32)


def resized_crop(x: Tensor, boxes: Tensor) -> Tensor:
    """A box of each picture, enlarged to the whole by bilinear interpolation.

    A box is never larger than the picture, so that nothing has to be smoothed against aliasing.

    Args:
        x: (N, 3, S, S).
        boxes: (N, 4), see ``crop_boxes``.

    Returns:
        (N, 3, S, S).
    """
    size = x.shape[-1]
    start, extent = boxes[:, :2, None], boxes[:, 2:, None]  # (N, 2, 1)
    centre = (torch.arange(size, device=x.device) + 0.5) / size
    position = (start + extent * centre - 0.5).clamp(start, start + extent - 1)  # (N, 2, S), no pixel from beside the box
    y, across = ((2 * position + 1) / size - 1).unbind(1)  # (N, S) each, -1 and 1 are the picture's edges
    grid = torch.stack((across[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), dim=-1)  # (N, S, S, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
