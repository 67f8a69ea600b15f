from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from flowergen.viz.latent_map import draw_paths, principal_plane


def cloud(num: int = 300) -> Tensor:
    """Spread most along one oblique direction of six, then along another."""
    g = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=g))
    return torch.randn(num, 6, generator=g) * torch.tensor([9.0, 4.0, 1.0, 0.5, 0.1, 0.1]) @ basis.T + 3


def test_the_plane_is_that_of_the_two_largest_singular_values() -> None:
    """Orthonormal, through the mean, the direction of most variance first."""
    points = cloud()
    mean, directions = principal_plane(points)
    torch.testing.assert_close(mean, points.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(directions @ directions.T, torch.eye(2), rtol=0, atol=1e-5)
    _, _, v = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close((directions.double() @ v[:2].T).abs(), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-4)
    assert directions.dtype == points.dtype


def test_a_direction_has_a_sign_that_does_not_depend_on_the_order_of_the_points() -> None:
    points = cloud()
    _, directions = principal_plane(points)
    _, other = principal_plane(points.flip(0))
    torch.testing.assert_close(other, directions, rtol=0, atol=1e-4)
    _, mirrored = principal_plane(-points)
    torch.testing.assert_close(mirrored, directions, rtol=0, atol=1e-4)
    largest = directions.abs().argmax(1)
    assert (directions[torch.arange(2), largest] > 0).all()


@pytest.mark.parametrize(("num", "dims"), [(2, 5), (3, 1), (2, 1)])
def test_few_points_and_few_dimensions_leave_a_direction_of_zeros_at_worst(num: int, dims: int) -> None:
    points = torch.randn(num, dims, generator=torch.Generator().manual_seed(0))
    mean, directions = principal_plane(points)
    assert (mean.shape, directions.shape) == ((dims,), (2, dims))
    assert directions.isfinite().all()
    assert ((points - mean) @ directions.T).isfinite().all()
    if dims == 1:
        assert directions.flatten().tolist() == [1, 0]


def pixels_of(image: np.ndarray, color: tuple[float, ...]) -> int:
    return int((np.abs(image.astype(float) - 255 * np.array(color[:3])).max(-1) < 3).sum())


def test_a_map_shows_points_and_ways_in_the_colours_of_their_classes(tmp_path: Path) -> None:
    """A way is drawn in its class's colour, with a star at its end; the file is whole, and its folder is made."""
    png = tmp_path / "new" / "map.png"
    points, labels = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    way = torch.linspace(-2, 2, 9)[:, None] * torch.tensor([[1.0, 0.5]])
    draw_paths(png, points, labels, {(2, "2 rose"): way, (0, "0 daisy"): -way.flip(0) + 1}, "ways")
    image = np.asarray(Image.open(png))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert [file.name for file in png.parent.iterdir()] == ["map.png"]
    first, second, unused = (pixels_of(image, colormaps["tab20"](k)) for k in (0, 1, 2))
    assert min(first, second) > 100
    assert unused == 0


def test_points_and_a_way_without_a_class_can_be_drawn(tmp_path: Path) -> None:
    """Even a single point, and a way that stands still."""
    draw_paths(tmp_path / "map.png", torch.zeros(1, 2), torch.tensor([-1]), {(-1, "sample"): torch.zeros(3, 2)}, "all -1")
    assert (tmp_path / "map.png").is_file()


@pytest.mark.parametrize("name", ["1 5 $ a piece", r"1 $\no$ formula", "1 $_$", "1 ^_{}", "1 日本"])
@pytest.mark.filterwarnings("ignore:Glyph")  # the font lacks the last one
def test_the_name_of_a_class_is_no_formula(name: str, tmp_path: Path) -> None:
    """Folders may be called anything, and matplotlib would set what stands between two dollars."""
    draw_paths(tmp_path / "map.png", torch.zeros(2, 2), torch.tensor([0, 1]), {(1, name): torch.zeros(3, 2)}, "t")
    assert (tmp_path / "map.png").is_file()
