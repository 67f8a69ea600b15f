"""Differentiable augmentation of the pictures that a discriminator sees."""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DRAWS = 7  # uniform numbers that one picture takes
NUM_ZOOM_DRAWS = 3


def diff_augment(x: Tensor, u: Tensor) -> Tensor:
    """Colour, translation and cutout (DiffAugment, Zhao et al. 2020, arXiv:2006.10738, section 3.2 and its published settings).

    Brightness + [-1/2, 1/2]; saturation * [0, 2]; contrast * [1/2, 3/2]; a shift of at most S / 8 px a side, zeros moving in; a
    square of S / 2 px set to zero. Real and generated pictures both pass through it, and gradients pass through it to the
    generator, so that a discriminator of few pictures cannot memorise them, and the generator does not reproduce the
    augmentations.

    Args:
        x: (N, 3, S, S) in [-1, 1].
        u: (N, 7) uniform in [0, 1), a row for each picture.

    Returns:
        (N, 3, S, S) float32.
    """
    x, size = x.float(), x.shape[-1]
    brightness, saturation, contrast = (u[:, i, None, None, None] for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean

    furthest, half = size // 8, size // 4
    shift = (u[:, 3:5] * (2 * furthest + 1)).long()  # (N, 2) from 0 to 2 S / 8
    position = torch.arange(size, device=x.device)
    rows, columns = shift[:, 0, None] + position, shift[:, 1, None] + position  # (N, S) each
    padded = F.pad(x, [furthest] * 4).permute(0, 2, 3, 1)  # (N, S + 2 S / 8, S + 2 S / 8, 3)
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    x = padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    centre = (u[:, 5:7] * (size + 1)).long()  # (N, 2) from 0 to S
    inside = (position - centre[..., None] >= -half) & (position - centre[..., None] < half)  # (N, 2, S)
    return x * ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def zoom(x: Tensor, u: Tensor) -> Tensor:
    """Of a random half of the pictures, a random quarter, enlarged to the whole, bilinearly.

    The first layer of most classifiers halves the picture, so that a discriminator on their features hardly sees patterns
    with a period of two pixels. In an enlarged picture their period is four.

    Args:
        x: (N, 3, S, S).
        u: (N, 3) uniform in [0, 1): row and column of the quarter, and whether the picture is enlarged, below 1/2.

    Returns:
        (N, 3, S, S).
    """
    size = x.shape[-1]
    half = size // 2
    start = (u[:, :2] * (size - half + 1)).long().clamp(max=size - half)  # (N, 2)
    position = torch.arange(half, device=x.device)
    rows, columns = start[:, 0, None] + position, start[:, 1, None] + position  # (N, S / 2) each
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    quarter = x.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    enlarged = F.interpolate(quarter, size=(size, size), mode="bilinear", align_corners=False)
    return torch.where(u[:, 2, None, None, None] < 0.5, enlarged, x)
