"""Edits by a tiny diffusion model with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.data import progress_bar
from flowergen.errors import UserError
from flowergen.evaluation.edits import EditSettings, img2img, inpaint, invert, write
from flowergen.evaluation.latent_edits import decode, encode
from flowergen.metrics.reconstruction import psnr
from tests.tiny_models import SIZE, TinyAutoencoder, diffusion

NO_CLASS = 3


def edit_settings(**changes: Any) -> EditSettings:
    model = changes.pop("model", None) or diffusion()
    labels = torch.tensor(changes.pop("labels", [0, 2, NO_CLASS]))
    return EditSettings(model, labels, changes.pop("num", 2), changes.pop("seed", 0), replace(model.sampling, **changes))


def pictures(num: int = 3) -> Tensor:
    return torch.rand(num, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def right_half() -> Tensor:
    known = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    known[..., SIZE // 2 :] = True
    return known


@pytest.mark.parametrize("objective", ["v", "flow"])
def test_strength_0_gives_the_reconstruction_whatever_the_class(objective: Any):
    settings, x = edit_settings(model=diffusion(objective=objective)), pictures()
    edited = img2img(settings, x, strength=0.0)
    assert edited.shape == (3, 3, 2, 3, SIZE, SIZE)
    x_hat = decode(settings.model, encode(settings.model, x).mean)
    torch.testing.assert_close(edited, x_hat[:, None, None].expand_as(edited))


def test_the_higher_the_strength_the_less_is_left_of_the_picture():
    settings, x = edit_settings(model=diffusion(awake=False), steps=20), pictures()
    x_hat = decode(settings.model, encode(settings.model, x).mean)[:, None, None]
    distances = [(img2img(settings, x, strength) - x_hat).square().mean().item() for strength in (0.0, 0.2, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 1e-9 < distances[1]


@pytest.mark.parametrize("edit", ["img2img", "inpaint", "invert"])
def test_an_edit_does_not_depend_on_other_pictures_and_classes(edit: str):
    """The second picture towards the third class, alone and among others."""

    def edited(settings: EditSettings, x: Tensor) -> Tensor:
        return {
            "img2img": lambda: img2img(settings, x, 0.5),
            "inpaint": lambda: inpaint(settings, x, right_half()),
            "invert": lambda: invert(settings, x),
        }[edit]()

    among_others, alone = (
        edited(edit_settings(), pictures())[1, 2],
        edited(edit_settings(labels=[NO_CLASS]), pictures()[1:2])[0, 0],
    )
    torch.testing.assert_close(among_others, alone, atol=1e-4, rtol=0)
    if edit != "invert":
        assert not torch.allclose(among_others[0], among_others[1]), "both edits have the same noise"
        torch.testing.assert_close(edited(edit_settings(seed=1), pictures()), edited(edit_settings(seed=1), pictures()))
        assert not torch.allclose(edited(edit_settings(seed=1), pictures()), edited(edit_settings(), pictures()))
    assert not torch.allclose(edited(edit_settings(), pictures())[:, 0], edited(edit_settings(), pictures())[:, 1]), (
        "the class has no effect"
    )


@pytest.mark.parametrize("on_pixels", [False, True])
def test_inpainting_keeps_every_known_pixel_and_paints_the_others(on_pixels: bool):
    settings, x, known = edit_settings(model=diffusion(on_pixels=on_pixels)), pictures(), right_half()
    edited = inpaint(settings, x, known)
    kept = known.expand(3, SIZE, SIZE)
    assert torch.equal(edited[..., kept], x[:, None, None].expand_as(edited)[..., kept])
    assert ((edited - x[:, None, None]).abs().amax((-3, -2, -1)) > 0.01).all()


def test_a_position_of_the_latent_with_an_unknown_pixel_is_painted_anew():
    """Latents are 4 x 4, each of 4 x 4 pixels. Only what surrounds the one with the unknown pixel is known to the sampler."""
    settings, known = edit_settings(num=1), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    known[0, 5, 6] = False
    x = pictures()
    x_changed = x.clone()
    x_changed[:, :, 4:8, 4:8] = 0.5  # not read, as that position is unknown
    edited, edited_changed = inpaint(settings, x, known), inpaint(settings, x_changed, known)
    assert torch.equal(edited[..., 5, 6], edited_changed[..., 5, 6])
    x_changed[:, :, 8:, :] = 0.5  # read
    assert not torch.equal(edited[..., 5, 6], inpaint(settings, x_changed, known)[..., 5, 6])


def test_many_edits_report_their_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    img2img(edit_settings(num=22), pictures(), 0.2)  # of three pictures towards three classes
    err = capsys.readouterr().err
    assert [line.partition(",")[0] for line in err.splitlines()] == [f"editing: {num} of 198" for num in (64, 128, 192, 198)]


def test_flat_latents_cannot_be_inpainted():
    model = diffusion(autoencoder=TinyAutoencoder(flat=True))
    with pytest.raises(UserError, match="needs latents with positions"):
        inpaint(edit_settings(model=model), pictures(), right_half())


@pytest.mark.parametrize("objective", ["v", "flow"])
def test_inverted_pictures_are_sampled_again(objective: Any, tmp_path: Path):
    settings, x = edit_settings(model=diffusion(objective=objective), steps=50), pictures()
    edited = invert(settings, x)
    assert edited.shape == (3, 3, 1, 3, SIZE, SIZE)
    x_hat = decode(settings.model, encode(settings.model, x).mean)
    assert psnr(edited[:, 2, 0], x_hat).min() > 40
    assert psnr(edited[:, 0, 0], x_hat).max() < 40
    lines = write(settings, x, edited, "invert", ["a", "b", "c"], ["rose", "tulip", "no class"], tmp_path)
    value = psnr(edited[:, 2, 0], x_hat).mean()
    assert lines[-1] == f"sampled again from its noise, the reconstruction is reproduced with a PSNR of {value:.2f} dB"


def test_a_grid_and_single_pictures_are_written(tmp_path: Path):
    settings, x = edit_settings(), pictures(2)
    edited = img2img(settings, x, 0.5)
    lines = write(settings, x, edited, "img2img", ["a", "b"], ["rose", "tulip", "no class"], tmp_path)
    assert lines == ["columns: original, reconstruction, then rose, tulip, no class (2 each)"]
    singles = [f"{name}_img2img_{label:02d}_{j:02d}.png" for name in "ab" for label in range(3) for j in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["img2img.png", *singles])
    pixels = np.asarray(Image.open(tmp_path / "b_img2img_01_02.png"))
    np.testing.assert_allclose(pixels / 255, edited[1, 1, 1].permute(1, 2, 0), atol=1 / 255)
    with Image.open(tmp_path / "img2img.png") as grid:
        assert grid.size == (8 * (SIZE + 2) - 2, 2 * (SIZE + 2) - 2)
