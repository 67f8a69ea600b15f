"""Pictures in the page: their pixels are the model's, their names cannot break it."""

import base64
import io
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.explorer.picture_html import data_url, figures


def noise(num: int, size: int = 20, channels: int = 3) -> Tensor:
    return torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(0))


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def pixels(x: Tensor) -> np.ndarray:
    return x.mul(255).round().byte().permute(1, 2, 0).numpy()


def test_downloads_are_the_pictures_themselves() -> None:
    x = noise(2)
    page = figures(x, ["one", "two"], "seed3")
    links = dict(re.findall(r'download="([^"]+)" href="([^"]+)"', page))
    assert list(links) == ["seed3.zip", "seed3_01.png", "seed3_02.png"]
    for name, image in zip(("seed3_01.png", "seed3_02.png"), x, strict=True):
        assert np.array_equal(np.asarray(opened(links[name])), pixels(image))
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(links["seed3.zip"].partition("base64,")[2]))) as archive:
        assert archive.namelist() == ["seed3_01.png", "seed3_02.png"]
        assert archive.testzip() is None
    assert "download" not in figures(x, ["one", "two"])


def test_a_small_picture_is_there_as_pixels_and_enlarged_bicubically() -> None:
    page = figures(noise(1), ["one"])
    (nearest,) = re.findall(r'class="nearest" alt="one" src="([^"]+)"', page)
    (bicubic,) = re.findall(r'class="bicubic" alt="one" src="([^"]+)"', page)
    own, enlarged = opened(nearest), opened(bicubic)
    assert (own.size, enlarged.size) == ((20, 20), (520, 520))
    expected = np.asarray(own.resize((520, 520), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.asarray(enlarged).astype(int) - expected).mean() < 4  # it is a JPEG file
    assert "bicubic" not in figures(noise(1, size=400), ["one"])  # large enough


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_too(channels: int) -> None:
    assert opened(data_url(noise(1, channels=channels)[0])).mode == ("L" if channels == 1 else "RGB")


def test_names_are_text() -> None:
    page = figures(noise(2), ["<script>alert(1)</script>", 'a" onload="alert(1)'], 'se"ed', '<b>"note"</b>')
    assert "<script>" not in page
    assert '" onload' not in page
    assert "<b>" not in page
