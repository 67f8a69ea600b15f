from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from sklearn.manifold import trustworthiness
from torch import Tensor

from flowergen.viz import latent_map
from flowergen.viz.latent_map import draw_classes, draw_paths, principal_plane, tsne_plane


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


# -- t-SNE


def test_neighbours_stay_neighbours_on_the_plane_and_a_draw_repeats() -> None:
    """Trustworthiness (Venna & Kaski 2001) by scikit-learn: 1 where all do, 0.5 by chance."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(120, 60, generator=g) + 6 * torch.eye(60)[torch.arange(120) % 4]
    plane = tsne_plane(points, seed=0)
    assert plane.shape == (120, 2)
    assert plane.dtype == points.dtype
    assert trustworthiness(points.numpy(), plane.numpy(), n_neighbors=5) > 0.8
    groups = [plane[k::4] for k in range(4)]
    for group in groups:  # a class lies together
        others = torch.cat([other for other in groups if other is not group])
        assert torch.cdist(group, group).median() < torch.cdist(group, others).median() / 2
    torch.testing.assert_close(tsne_plane(points, seed=0), plane, rtol=0, atol=0)


@pytest.mark.parametrize("points", [torch.zeros(1, 5), torch.zeros(9, 5), torch.full((50, 3), 1e4)])
def test_points_that_are_all_the_same_lie_on_one_spot(points: Tensor) -> None:
    assert not tsne_plane(points, seed=2**63 - 1).any()


@pytest.mark.parametrize(("num", "dims"), [(2, 5), (2, 1), (3, 2), (5, 100), (40, 1)])
def test_few_points_and_few_dimensions_have_a_map_too(num: int, dims: int) -> None:
    for scale in (1e-6, 1.0, 1e6):
        plane = tsne_plane(scale * torch.randn(num, dims, generator=torch.Generator().manual_seed(0)), seed=0)
        assert plane.isfinite().all()
        assert len(plane.unique(dim=0)) == num
    copies = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat_interleave(5, 0)
    assert tsne_plane(copies, seed=0).isfinite().all()


# -- coloured by class


def test_up_to_twenty_classes_have_a_legend_and_more_a_number_on_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every class has points in a colour of its own; where there are a hundred, a list of names makes the picture wider."""
    monkeypatch.setattr(latent_map, "MAX_NAMES", 110)
    points = torch.randn(1020, 2, generator=torch.Generator().manual_seed(0))
    widths = {}
    for num in (20, 102, 120):
        names = [f"class {k}" for k in range(num)]
        draw_classes(tmp_path / f"{num}.png", points, torch.arange(1020) % num, names, "t", ("a", "b"))
        image = np.asarray(Image.open(tmp_path / f"{num}.png"))
        widths[num] = image.shape[1]
        if num <= 20:
            assert min(pixels_of(image, colormaps["tab20"](k)) for k in range(num)) > 10
        else:
            solid = image[image.astype(int).max(-1) - image.min(-1) > 200]
            assert len(np.unique(solid, axis=0)) >= 100
    assert widths[20] < widths[102] == widths[120]


def test_pictures_without_a_class_are_grey(tmp_path: Path) -> None:
    """All of them, with no legend; or beside those that have one."""
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    draw_classes(tmp_path / "none.png", points, torch.full((60,), -1), [], "t", ("a", ""))
    image = np.asarray(Image.open(tmp_path / "none.png")).astype(int)
    assert (image.max(-1) == image.min(-1)).all()
    draw_classes(tmp_path / "some.png", points, torch.arange(60) % 3 - 1, ["rose", "1 $\\no$ formula ^_{}"], "t", ("a", "b"))
    image = np.asarray(Image.open(tmp_path / "some.png"))
    assert pixels_of(image, colormaps["tab10"](0)) > 10
    assert pixels_of(image, colormaps["tab10"](1)) > 10
    draw_classes(tmp_path / "one.png", points[:1], torch.tensor([2]), ["a", "b", "c"], "t", ("a", "b"))
    assert (tmp_path / "one.png").is_file()
