"""Image grids and PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowergen.files import replacing


def image_grid(images: Tensor, columns: int, gap_px: int = 2) -> NDArray[np.uint8]:
    """Arrange pictures in a grid in reading order, with white gaps and white cells at the end of the last row.

    Args:
        images: (N, C, H, W) in [0, 1], N >= 1, in colour or grey, on any device; values outside are clamped.
        columns: pictures per row; fewer if there are fewer pictures.
        gap_px: gap between pictures in pixels, >= 0.

    Returns:
        uint8 (rows * (H + gap_px) - gap_px, columns * (W + gap_px) - gap_px, 3).
    """
    columns = min(columns, len(images))
    pixels = images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()  # (N, C, H, W)
    pixels = pixels.expand(-1, 3, -1, -1)
    cells = F.pad(pixels, (0, gap_px, 0, gap_px, 0, 0, 0, -len(pixels) % columns), value=255)  # (R C, 3, H + g, W + g)
    cells = cells.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (R, H + g, C, W + g, 3)
    grid = cells.flatten(2, 3).flatten(0, 1)  # (R (H + g), C (W + g), 3)
    return grid[: grid.shape[0] - gap_px, : grid.shape[1] - gap_px].numpy()


def comparison_grid(x: Tensor, x_hat: Tensor, columns: int, gap_px: int = 2) -> NDArray[np.uint8]:
    """Arrange real pictures in one row and their reconstructions below, with more such pairs of rows if N > columns.

    Args:
        x: (N, C, H, W) in [0, 1], N >= 1.
        x_hat: (N, C, H, W) in [0, 1].
        columns: pictures per row; fewer if there are fewer pictures.
        gap_px: gap between pictures in pixels, >= 0.

    Returns:
        uint8 (H', W', 3), as `image_grid` with twice the rows.
    """
    columns = min(columns, len(x))
    white = (0, 0, 0, 0, 0, 0, 0, -len(x) % columns)
    real, reconstructed = (F.pad(images, white, value=1.0).unflatten(0, (-1, columns)) for images in (x, x_hat))
    return image_grid(torch.stack((real, reconstructed), dim=1).flatten(0, 2), columns, gap_px)


def enlarged(grid: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Enlarge a picture by nearest neighbour.

    Args:
        grid: uint8 (H, W, 3).
        factor: at least 1.

    Returns:
        uint8 (factor H, factor W, 3), of which ``[::factor, ::factor]`` is the given one.
    """
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def labelled_grid(rows: Sequence[tuple[str, Tensor]], factor: int = 1, gap_px: int = 2) -> NDArray[np.uint8]:
    """Arrange pictures in one row per label, with the label to its left.

    Args:
        rows: label and (N, C, H, W) pictures in [0, 1], N >= 1, of each row; at least one row, N may differ.
        factor: by which pictures and gaps, but not the labels, are enlarged, see ``enlarged``.
        gap_px: gap between pictures in pixels, >= 0, before they are enlarged.

    Returns:
        uint8 (H', W', 3).
    """
    columns = max(len(images) for _, images in rows)
    white = (0, 0, 0, 0, 0, 0, 0)
    padded = [F.pad(images, (*white, columns - len(images)), value=1.0) for _, images in rows]
    grid = enlarged(image_grid(torch.cat(padded), columns, gap_px), factor)
    height = factor * rows[0][1].shape[-2]
    font = ImageFont.load_default(size=max(9, min(20, height // 4)))
    margin = 8 + max(int(font.getlength(label)) for label, _ in rows)
    canvas = Image.new("RGB", (grid.shape[1] + margin, grid.shape[0]), "white")
    canvas.paste(Image.fromarray(grid), (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (label, _) in enumerate(rows):
        draw.text((margin - 4, row * (height + factor * gap_px) + height // 2), label, fill="black", font=font, anchor="rm")
    return np.asarray(canvas)


def captioned(grid: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """Add a caption below a grid.

    Args:
        grid: uint8 (H, W, 3).
        caption: text, wrapped between words; a word wider than the grid makes the picture wider.

    Returns:
        uint8 (H', W', 3), H' > H and W' >= W, with the grid in its upper left corner.
    """
    font = ImageFont.load_default(size=12)
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > grid.shape[1] - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    line_px = sum(font.getmetrics()) + 2  # type: ignore[union-attr]
    width = max(grid.shape[1], 4 + max(int(font.getlength(line)) + 1 for line in lines))
    canvas = Image.new("RGB", (width, grid.shape[0] + 4 + line_px * len(lines)), "white")
    canvas.paste(Image.fromarray(grid), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((2, grid.shape[0] + 2 + row * line_px), line, fill="black", font=font)
    return np.asarray(canvas)


def write_png(path: str | Path, array: NDArray[np.uint8]) -> None:
    """Write a PNG file atomically, and create its folder.

    Args:
        path: the file to write; an existing one is replaced.
        array: uint8 (H, W, 3), or (H, W, 1) for a grey picture.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(array if array.shape[-1] == 3 else array[..., 0]).save(partial, format="PNG")
