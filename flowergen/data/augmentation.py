"""Batched augmentations with separate parameters for each picture.

The maths is that of torchvision's transforms, which draw one set of parameters for a whole batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

NUM_DRAWS = 4  # uniform numbers per picture, for each of colour jitter and crop
HUE = 0.1  # times the strength, in turns of the colour circle; small, as hue distinguishes flowers and brightness does not
MAX_ASPECT = 4 / 3  # largest aspect ratio of a crop, divided by that of the picture, as in Szegedy et al. 2015


def jitter_factors(u: np.ndarray, strength: float) -> np.ndarray:
    """Map uniform numbers to the parameters of ``color_jitter``, distributed as in torchvision's ``ColorJitter``.

    Args:
        u: (M, 4) uniform in [0, 1).
        strength: s in [0, 1].

    Returns:
        (M, 4) float32: factors of brightness, contrast and saturation in [1 - s, 1 + s], hue shift in turns in [-s/10, s/10].
    """
    centre, width = np.array([1, 1, 1, 0]), strength * np.array([1, 1, 1, HUE])
    return (centre + width * (2 * u - 1)).astype(np.float32)


def color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Adjust brightness, contrast, saturation and hue, in this order; torchvision shuffles the four.

    Args:
        x: (N, C, H, W) in [0, 1]. Saturation and hue of grey (C = 1) are not adjusted.
        factors: (N, 4), see ``jitter_factors``.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    brightness, contrast, saturation, hue = factors[..., None, None, None].unbind(1)  # (N, 1, 1, 1) each
    x = (brightness * x).clamp(0, 1)
    x = _blend(x, rgb_to_grayscale(x).mean((1, 2, 3), keepdim=True), contrast)
    if x.shape[1] == 1:
        return x
    x = _blend(x, rgb_to_grayscale(x), saturation)
    return _turn_hue(x, hue)


def _blend(x: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    return (ratio * x + (1 - ratio) * other).clamp(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue in HSV space (Smith 1978, "Color gamut transform pairs")."""
    value = x.amax(1, keepdim=True)  # (N, 1, H, W)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = (x / torch.where(chroma == 0, 1, chroma)).split(1, dim=1)
    is_red, is_green = x[:, :1] == value, x[:, 1:2] == value
    hue = torch.where(is_red, green - blue, torch.where(is_green, 2 + blue - red, 4 + red - green))  # in sixths of a turn
    k = (torch.arange(5, 0, -2, device=x.device)[:, None, None] + hue + 6 * turns) % 6  # (N, 3, H, W)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def crop_boxes(u: np.ndarray, areas: Sequence[float], height_px: int, width_px: int) -> np.ndarray:
    """Map uniform numbers to the boxes of ``resized_crop`` (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Drawn as in torchvision's ``RandomResizedCrop``, except that the aspect ratio is restricted to values for which a box of
    the drawn area fits; torchvision redraws both until the box fits.

    Args:
        u: (M, 4) uniform in [0, 1).
        areas: smallest and largest fraction of the picture's area, in (0, 1].
        height_px, width_px: H and W of the pictures.

    Returns:
        (M, 4) float32, integer-valued: top, left, height, width; inside the picture, width / height from 3/4 to 4/3 of W / H.
    """
    smallest, largest = areas
    area = smallest + (largest - smallest) * u[:, 0]
    widest = np.minimum(math.log(MAX_ASPECT), -np.log(area))  # (M,) log of the largest aspect ratio, divided by W / H
    ratio = np.exp((2 * u[:, 1] - 1) * widest)
    parts = (width_px, area * ratio), (height_px, area / ratio)
    width, height = (np.rint(side * np.sqrt(part)).clip(1, side) for side, part in parts)
    top, left = np.floor(u[:, 2] * (height_px - height + 1)), np.floor(u[:, 3] * (width_px - width + 1))
    return np.stack((top, left, height, width), axis=1).astype(np.float32)


def resized_crop(x: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box from each picture and enlarge it to full size by bilinear interpolation.

    A box is never larger than the picture, so no antialiasing is needed.

    Args:
        x: (N, C, H, W).
        boxes: (N, 4), see ``crop_boxes``.

    Returns:
        (N, C, H, W).
    """
    height, width = x.shape[2:]
    y, across = (_positions(boxes[:, i, None], boxes[:, 2 + i, None], size) for i, size in enumerate((height, width)))
    grid = torch.stack((across[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _positions(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """Return where the pixels of one side are taken from, (N, size); -1 and 1 are the picture's edges.

    Args:
        start, extent: (N, 1) start and length of the boxes along this side, in px.
        size: length of the side, in px.
    """
    centre = (torch.arange(size, device=start.device) + 0.5) / size
    position = (start + extent * centre - 0.5).clamp(start, start + extent - 1)  # clamped to the pixels of the box
    return (2 * position + 1) / size - 1
