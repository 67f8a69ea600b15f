from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.viz.animations import write_gif


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_shown_one_after_the_other_again_and_again(channels: int, tmp_path: Path) -> None:
    """Of any shape, in colour or grey; values outside [0, 1] are clamped."""
    values = torch.tensor([-0.3, 0.4, 1.2]).view(3, 1, 1, 1).repeat(1, channels, 48, 64)
    write_gif(tmp_path / "new" / "a.gif", values, seconds=0.2)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["loop"]) == ((64, 48), 3, 0)
        for number, level in enumerate((0, 102, 255)):
            gif.seek(number)
            assert gif.info["duration"] == 200
            np.testing.assert_allclose(np.asarray(gif.convert("RGB")).astype(int), np.full((48, 64, 3), level), atol=1)
