"""Differentiable augmentation of the pictures that a discriminator sees."""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DRAWS = 7  # uniform numbers that one picture takes
NUM_ZOOM_DRAWS = 3


def diff_augment(x: Tensor, u: Tensor) -> Tensor:
    """Colour, translation and cutout (DiffAugment, Zhao et al. 2020, arXiv:2006.10738, section 3.2 and its published settings).

    Brightness + [-1/2, 1/2]; saturation * [0, 2]; contrast * [1/2, 3/2]; a shift of at most H / 8 rows and W / 8 columns, zeros
    moving in; a rectangle of H / 2 x W / 2 px set to zero. Real and generated pictures both pass through it, and gradients pass
    through it to the generator, so that a discriminator of few pictures cannot memorise them, and the generator does not
    reproduce the augmentations.

    Args:
        x: (N, C, H, W) in [-1, 1].
        u: (N, 7) uniform in [0, 1), a row for each picture.

    Returns:
        (N, C, H, W) float32.
    """
    x = x.float()
    height, width = x.shape[-2:]
    brightness, saturation, contrast = (u[:, i, None, None, None] for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean

    most = height // 8, width // 8
    first_row, first_column = ((u[:, 3 + i] * (2 * most[i] + 1)).long() for i in range(2))  # from 0 to 2 H / 8 and 2 W / 8
    x = _part(F.pad(x, [most[1]] * 2 + [most[0]] * 2), first_row, first_column, height, width)

    rows, columns = _inside(u[:, 5], height), _inside(u[:, 6], width)
    return x * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def zoom(x: Tensor, u: Tensor) -> Tensor:
    """Of a random half of the pictures, a random quarter, enlarged to the whole, bilinearly.

    The first layer of most classifiers halves the picture, so that a discriminator on their features hardly sees patterns
    with a period of two pixels. In an enlarged picture their period is four.

    Args:
        x: (N, C, H, W).
        u: (N, 3) uniform in [0, 1): row and column of the quarter, and whether the picture is enlarged, below 1/2.

    Returns:
        (N, C, H, W).
    """
    height, width = x.shape[-2:]
    row, column = (
        (u[:, i] * (size - size // 2 + 1)).long().clamp(max=size - size // 2) for i, size in enumerate((height, width))
    )
    quarter = _part(x, row, column, height // 2, width // 2)
    enlarged = F.interpolate(quarter, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(u[:, 2, None, None, None] < 0.5, enlarged, x)


def _part(x: Tensor, first_row: Tensor, first_column: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) pictures and (N,) int64 positions -> (N, C, height, width), the part that begins there."""
    rows = first_row[:, None] + torch.arange(height, device=x.device)  # (N, height)
    columns = first_column[:, None] + torch.arange(width, device=x.device)  # (N, width)
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _inside(u: Tensor, size: int) -> Tensor:
    """(N,) uniform in [0, 1) -> (N, size) whether a position is within a quarter of the size from a random centre."""
    distance = torch.arange(size, device=u.device) - (u * (size + 1)).long()[:, None]
    return (distance >= -(size // 4)) & (distance < size // 4)
