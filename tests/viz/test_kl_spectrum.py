from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from flowergen.viz.kl_spectrum import draw_kl_spectrum


def pixels_of(image: np.ndarray, color: tuple[float, ...]) -> int:
    return int((np.abs(image.astype(float) - 255 * np.array(color[:3])).max(-1) < 20).sum())


@pytest.mark.parametrize(("shape", "colors"), [((1, 1, 1), 1), ((90, 1, 1), 1), ((3, 4, 4), 3), ((30, 2, 2), 1)])
def test_channels_of_a_spatial_latent_have_a_colour_each_as_far_as_colours_go(
    shape: tuple[int, int, int], colors: int, tmp_path: Path
) -> None:
    """Also of dimensions that carry nothing, and of widths from nothing to plenty."""
    g = torch.Generator().manual_seed(0)
    kl, std = torch.rand(shape, generator=g).double() * 3, torch.logspace(-6, 3, int(np.prod(shape))).double().view(shape)
    kl[0, 0, 0] = 0
    draw_kl_spectrum(tmp_path / "new" / "kl.png", kl, std, 0.01)
    image = np.asarray(Image.open(tmp_path / "new" / "kl.png"))
    assert [pixels_of(image, colormaps["tab10"](c)) > 10 * min(int(np.prod(shape)), 16) for c in range(4)] == [
        c < colors for c in range(4)
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kl.png"]
