from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape
from flowergen.runs.evaluation import _protocol, _shape_of_first
from tests.conftest import save_grey
from tests.evaluation.fakes import a_set, networks, real_of


@pytest.mark.parametrize("size", [(48, 64), (20, 20), (1024, 16)])
def test_folders_are_compared_at_the_size_of_the_first_generated_picture(size: tuple[int, int], tmp_path: Path) -> None:
    save_grey(tmp_path / "1.png", 1, size)
    save_grey(tmp_path / "2.png", 2, (30, 30))
    assert _shape_of_first(str(tmp_path)) == (3, *size)


@pytest.mark.parametrize(("size", "words"), [((15, 64), "15 x 64 px"), ((64, 1025), "64 x 1025 px"), ((12, 12), "12 px")])
def test_a_size_that_is_too_small_or_large_has_to_be_given(size: tuple[int, int], words: str, tmp_path: Path) -> None:
    save_grey(tmp_path / "1.png", 1, size)
    with pytest.raises(UserError, match=rf"^generated: 1\.png has {words}: give image_size=, 16 to 1024 px a side$"):
        _shape_of_first(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (PictureShape(3, 64, 64), {"image_size_px": 64}),
        (PictureShape(3, 48, 64), {"image_size_px": [48, 64]}),
        (PictureShape(1, 64, 64), {"image_size_px": 64, "image_channels": 1}),
    ],
    ids=str,
)
def test_the_protocol_of_squares_in_colour_is_as_it_was(shape: PictureShape, found: dict[str, Any], tmp_path: Path) -> None:
    """So that older cards can be compared with newer ones."""
    real = real_of(a_set(np.zeros((4, *shape), np.uint8)))
    protocol = _protocol(real, 4, 1, 0, shape, networks(tmp_path))
    assert {key: value for key, value in protocol.items() if key.startswith("image_")} == found
