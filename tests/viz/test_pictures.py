import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.viz.pictures import Pictures


def drawn(num: int = 5, channels: int = 3, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_it_is_a_tensor_and_results_are_ordinary_ones():
    x, shown = drawn(), Pictures.of(drawn())
    assert isinstance(shown, torch.Tensor)
    assert torch.equal(shown, x)
    for result in (2 * shown - 1, shown[0], shown.mean(), torch.cat((shown, shown)), shown.double()):
        assert type(result) is torch.Tensor
    assert torch.equal(torch.cat((shown, x))[:5], x)
    assert shown.shape == (5, 3, 8, 12)
    torch.testing.assert_close(shown.numpy(), x.numpy())


def test_a_saved_one_is_loaded_as_an_ordinary_tensor(tmp_path: Path):
    torch.save(Pictures.of(drawn()), tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, drawn())


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_it_converts_to_pil(channels: int, mode: str):
    x = drawn(channels=channels)
    images = Pictures.of(x).pil()
    assert [(image.mode, image.size) for image in images] == [(mode, (12, 8))] * 5
    expected = (255 * x[3]).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.atleast_3d(np.asarray(images[3])), expected)


def test_a_notebook_shows_a_grid_enlarged():
    """Three columns of five pictures of 8 x 12 px, with gaps of 2 px, twelve times as large."""
    image = Image.open(io.BytesIO(Pictures.of(drawn())._repr_png_()))
    assert image.size == (12 * (3 * 14 - 2), 12 * (2 * 10 - 2))
    assert Pictures.of(drawn()).grid(columns=5).size == (5 * 14 - 2, 8)
    assert Image.open(io.BytesIO(Pictures.of(drawn(1, 1, 100, 100))._repr_png_())).size == (100, 100)
