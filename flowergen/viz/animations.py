"""Animated GIFs."""

from pathlib import Path

import imageio.v3 as iio
import torch
from torch import Tensor

from flowergen.files import replacing


def write_gif(path: str | Path, frames: Tensor, seconds: float = 0.1) -> None:
    """Write a looping GIF atomically, and create its folder; an existing file is replaced.

    The frames are (T, C, H, W) in [0, 1], in colour or grey, and last ``seconds`` each; values outside are clamped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = frames.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()  # (T, C, H, W)
    in_colour = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
    with replacing(path) as partial:
        iio.imwrite(partial, in_colour, extension=".gif", plugin="pillow", duration=1000 * seconds, loop=0)
