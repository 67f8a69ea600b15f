"""Walks of an autoencoder whose latents are pixels, so that every number is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from flowergen.data import progress_bar
from flowergen.errors import UserError
from flowergen.evaluation import latent_edits
from flowergen.modules.image_model import ImageModel
from flowergen.nn.posterior import Posterior

SIDE = 12


class Pixels(ImageModel):
    """z is the picture itself, spatial (3, S, S), with a posterior of standard deviation ``sigma``."""

    best_metric, best_mode = "none", "max"

    def __init__(self, sigma: float = 0.1, blind: bool = False):
        super().__init__(SIDE, 0)
        self.sigma, self.blind = sigma, blind

    @property
    def inference_net(self) -> nn.Module:
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 3, SIDE, SIDE

    def encode(self, x: Tensor) -> Posterior:
        return Posterior(x, torch.full_like(x, 2 * np.log(self.sigma)))

    def decode(self, z: Tensor) -> Tensor:
        return torch.full_like(z, 0.5) if self.blind else z

    def summary(self) -> str:
        return "pixels"


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


@pytest.fixture
def x() -> Tensor:
    return 0.3 + 0.4 * torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def cell(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    step = SIDE + 2
    return grid[row * step : row * step + SIDE, column * step : column * step + SIDE]


def test_variations_are_drawn_from_the_widened_posterior(x: Tensor, tmp_path: Path) -> None:
    """z = mu + sqrt(scale) sigma eps: with sigma 0.1 and scale 0.04 pixels deviate by 0.02."""
    lines = latent_edits.vary(Pixels(), x[:1], ["a"], tmp_path, num=400, scale=0.04, seed=3)
    varied = torch.stack([torch.from_numpy(read(tmp_path / f"a_variation_{j + 1:02d}.png")) for j in range(400)]) / 255
    deviation = varied - x[0].permute(1, 2, 0)
    assert deviation.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(deviation.mean().item()) < 1e-3
    expected = 255 * 0.02 * np.sqrt(2 / np.pi)  # E|N(0, s^2)| = s sqrt(2 / pi)
    assert float(lines[0].split(" by ")[1].split()[0]) == pytest.approx(expected, rel=0.02)
    assert len(lines) == 1


def test_many_variations_report_their_progress(
    x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    latent_edits.vary(Pixels(), x[:1], ["a"], tmp_path / "few", num=64, scale=0.04, seed=3)
    assert not capsys.readouterr().err
    latent_edits.vary(Pixels(), x, ["a", "b", "c"], tmp_path / "many", num=30, scale=0.04, seed=3)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "decoding: 64 of 90",
        "decoding: 90 of 90",
    ]


def test_the_grid_shows_the_original_then_the_reconstruction_then_the_variations(x: Tensor, tmp_path: Path) -> None:
    latent_edits.vary(Pixels(), x, ["a", "b", "c"], tmp_path, num=2, scale=0.04, seed=3)
    grid = read(tmp_path / "variations.png")
    for row, name in enumerate("abc"):
        for column, kind in enumerate(("original", "reconstruction", "variation_01", "variation_02")):
            np.testing.assert_array_equal(cell(grid, row, column), read(tmp_path / f"{name}_{kind}.png"))
    np.testing.assert_allclose(cell(grid, 1, 0), 255 * x[1].permute(1, 2, 0), atol=0.51)


def test_a_picture_s_variations_do_not_depend_on_the_pictures_beside_it(x: Tensor, tmp_path: Path) -> None:
    latent_edits.vary(Pixels(), x, ["a", "b", "c"], tmp_path / "all", num=2, scale=1.0, seed=3)
    latent_edits.vary(Pixels(), x[2:], ["c"], tmp_path / "one", num=1, scale=1.0, seed=3)
    np.testing.assert_array_equal(read(tmp_path / "all" / "c_variation_01.png"), read(tmp_path / "one" / "c_variation_01.png"))


def test_variations_that_nobody_sees_come_with_advice_and_auto_finds_some_that_show(x: Tensor, tmp_path: Path) -> None:
    lines = latent_edits.vary(Pixels(sigma=0.01), x, list("abc"), tmp_path, num=3, scale=0.01, seed=0)
    assert "scale=auto" in lines[1]
    lines = latent_edits.vary(Pixels(sigma=0.01), x, list("abc"), tmp_path, num=3, scale=None, seed=0)
    assert len(lines) == 1
    assert float(lines[0].split(" by ")[1].split()[0]) == pytest.approx(8, rel=0.1)
    assert float(lines[0].split()[1].rstrip(":")) == pytest.approx((8 / 255 / 0.01) ** 2 * np.pi / 2, rel=0.1)


def test_a_decoder_that_ignores_its_latents_is_told_so(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="posterior collapse"):
        latent_edits.vary(Pixels(blind=True), x, list("abc"), tmp_path, num=3, scale=None, seed=0)


def test_an_interpolation_begins_and_ends_with_the_reconstructions_and_moves(x: Tensor, tmp_path: Path) -> None:
    latent_edits.interpolate(Pixels(), x, tmp_path, num=5)
    grid = read(tmp_path / "interpolation.png")
    for row in range(2):
        np.testing.assert_array_equal(cell(grid, row, 0), cell(grid, row, 1))
        np.testing.assert_array_equal(cell(grid, row, 6), cell(grid, row, 5))
        np.testing.assert_allclose(cell(grid, row, 6), 255 * x[row + 1].permute(1, 2, 0), atol=0.51)
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert getattr(gif, "n_frames", 1) >= 10
        assert gif.info["loop"] == 0
    with pytest.raises(UserError, match="two pictures"):
        latent_edits.interpolate(Pixels(), x[:1], tmp_path, num=5)


def test_a_traversal_has_a_row_for_each_of_the_most_active_dimensions(x: Tensor, tmp_path: Path) -> None:
    """Equal sigmas: the pixel furthest from 0 says most. Its row runs from black to white in that pixel alone."""
    lines = latent_edits.traversals(Pixels(), x[:1], ["a"], tmp_path, num=3, num_dims=2)
    unit = int(x[0].flatten().argmax())
    assert f"{unit} (" in lines[0].split("dimension (nats)")[1].split(",")[0]
    channel, row, column = np.unravel_index(unit, (3, SIDE, SIDE))
    grid = read(tmp_path / "a_traversal.png")
    assert cell(grid, 0, 0)[row, column, channel] == 0
    assert cell(grid, 0, 2)[row, column, channel] == 255
    changed = np.argwhere(cell(grid, 0, 0) != cell(grid, 0, 2))
    np.testing.assert_array_equal(changed, [[row, column, channel]])
    assert grid.shape[:2] == (2 * (SIDE + 2) - 2, 3 * (SIDE + 2) - 2)


def test_arithmetic_adds_the_direction_ever_more_strongly(x: Tensor, tmp_path: Path) -> None:
    direction = torch.zeros(3, SIDE, SIDE)
    direction[0] = 0.1
    latent_edits.arithmetic(Pixels(), x[:2], ["a", "b"], tmp_path, num=4, direction=direction)
    grid = read(tmp_path / "arithmetic.png")
    for step in range(4):  # strengths 0.5, 1, 1.5, 2
        gain = cell(grid, 1, 2 + step) - cell(grid, 1, 1)
        np.testing.assert_allclose(gain[..., 0], 255 * 0.05 * (step + 1), atol=1.01)
        assert np.abs(gain[..., 1:]).max() == 0


def test_reconstructions_are_scored_and_shown_under_the_pictures(x: Tensor, tmp_path: Path) -> None:
    lines = latent_edits.reconstruct(Pixels(blind=True), x, list("abc"), tmp_path)
    expected = -10 * (x - 0.5).square().flatten(1).mean(1).log10().mean()
    assert float(lines[0].split("PSNR ")[1].split()[0]) == pytest.approx(expected.item(), abs=0.01)
    grid = read(tmp_path / "reconstruction.png")
    np.testing.assert_allclose(cell(grid, 0, 2), 255 * x[2].permute(1, 2, 0), atol=0.51)
    np.testing.assert_array_equal(cell(grid, 1, 2), read(tmp_path / "c_reconstruction.png"))
