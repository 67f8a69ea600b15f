import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from flowergen.data import progress_bar
from flowergen.data.batch import Batch
from flowergen.evaluation import reconstruction
from flowergen.evaluation.pictures import PictureSet, real_pictures_of
from flowergen.evaluation.reconstruction import reconstruction_scores, reconstructions
from flowergen.modules.vae import VAEModule
from flowergen.randomness import initialisation, normal_per_sample
from tests.tiny_models import SIZE, TinyAutoencoder, drawn


@pytest.fixture(scope="module")
def pictures(cache_dir: Path) -> PictureSet:
    """Twelve test pictures of 28 px, whose rows are not 0 to 11."""
    return real_pictures_of(drawn(cache_dir, num_images=120, image_size=28), None).reference


@pytest.fixture(scope="module")
def vae() -> VAEModule:
    with initialisation(0):
        module = VAEModule(
            image_size=28,
            seed=3,
            channels=[4, 8],
            latent_dim=4,
            norm="group",
            activation="silu",
            residual_blocks=0,
            pixel_range=(-1, 1),
            reconstruction="mse",
            sigma="optimal",
            reconstruction_reduction="sum",
            divergence="kl",
            beta=4.0,  # the common ELBO has 1
            beta_warmup_steps=0,
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            lr_schedule="constant",
            lr_warmup_steps=0,
            ema_decay=None,
        ).eval()
        with torch.no_grad():  # untrained, hardly anything depends on the picture
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter *= 2.5
    return module


def batch(pictures: PictureSet) -> Batch:
    x = torch.from_numpy(pictures.at(range(len(pictures)))).float() / 255
    rows = torch.from_numpy(pictures.rows)
    return Batch(x, torch.from_numpy(pictures.labels[pictures.rows]), rows)


@pytest.mark.parametrize("num", [64, 5])
def test_scores_are_those_of_the_vaes_own_validation(
    num: int, vae: VAEModule, pictures: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise for the same picture, whatever the batches."""
    monkeypatch.setattr(reconstruction, "batch_of", lambda size: num)
    with torch.inference_mode():
        means = {name: value.mean().item() for name, value in vae.scores(batch(pictures)).items()}
    expected = vae.summarise(means)
    found = reconstruction_scores(vae, pictures, str(tmp_path), vae.seed)
    for name in ("psnr", "ssim", "elbo", "sharpness"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    assert found["rate"] == pytest.approx(expected["loss_kl"], rel=1e-5)
    assert found["active_units"] == expected["active_units"] > 0
    assert set(found) == {"psnr", "ssim", "elbo", "sharpness", "active_units", "rate", "distortion"}


def test_elbo_is_minus_distortion_minus_rate_by_torch_distributions(
    vae: VAEModule, pictures: PictureSet, tmp_path: Path
) -> None:
    """Of a Gaussian whose deviation all pictures share, the best one; from encode and decode alone, drawn with the seed."""
    found = reconstruction_scores(vae, pictures, str(tmp_path), 7)
    x = batch(pictures).image.double()
    eps = normal_per_sample(pictures.rows.tolist(), vae.latent_shape, seed=7, purpose="validation")
    with torch.inference_mode():
        q = vae.encode(x.float())
        x_hat = vae.decode(q.sample(eps)).double()
        mse = (x - vae.decode(q.mean).double()).square().mean((1, 2, 3))
    sigma = (x - x_hat).square().mean().sqrt()
    distortion = -Independent(Normal(x_hat, sigma), 3).log_prob(x).mean().item()
    posterior = Independent(Normal(q.mean.double(), (q.logvar.double() / 2).exp()), 3)
    rate = kl_divergence(posterior, Independent(Normal(torch.zeros(len(x), 4, 1, 1).double(), 1.0), 3)).mean().item()
    assert rate > 0.01
    assert found["rate"] == pytest.approx(rate, rel=1e-5)
    assert found["distortion"] == pytest.approx(distortion, rel=1e-5)
    assert found["elbo"] == pytest.approx(-distortion - rate, rel=1e-5)
    assert found["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-5)


def test_scores_report_their_progress(
    vae: VAEModule, pictures: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(reconstruction, "batch_of", lambda size: 8)
    reconstruction_scores(vae, pictures, str(tmp_path), 0)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "reconstructing: 1 of 2",
        "reconstructing: 2 of 2",
    ]


def test_any_autoencoder_is_scored_from_encode_and_decode(cache_dir: Path, tmp_path: Path) -> None:
    pictures = real_pictures_of(drawn(cache_dir), None).reference
    found = reconstruction_scores(TinyAutoencoder().eval(), pictures, str(tmp_path), 0)
    assert all(math.isfinite(value) for value in found.values())
    assert found["elbo"] == pytest.approx(-found["distortion"] - found["rate"])


def test_scores_depend_on_the_seed_that_is_given_and_not_on_the_models_own(
    vae: VAEModule, pictures: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two models are scored with the same draws; what is of the mean alone has no draws."""
    found = {seed: reconstruction_scores(vae, pictures, str(tmp_path), seed) for seed in (0, 1)}
    monkeypatch.setattr(vae, "seed", 1)
    assert reconstruction_scores(vae, pictures, str(tmp_path), 0) == found[0]
    for name in ("elbo", "distortion"):
        assert found[0][name] != found[1][name], name
    for name in ("psnr", "ssim", "rate", "active_units"):
        assert found[0][name] == found[1][name], name


class Distance(torch.nn.Module):
    """In the place of LPIPS, which wants 500 MB of VGG-16: not symmetric, and sees the range."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.square() - b).mean((1, 2, 3), keepdim=True)


def test_lpips_is_of_the_decoded_mean_in_minus_1_to_1_where_vgg_is_there(
    vae: VAEModule, pictures: PictureSet, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "batch_of", lambda size: 5)
    monkeypatch.setattr(reconstruction, "load_lpips", lambda folder: Distance())
    x = batch(pictures).image
    with torch.inference_mode():
        expected = Distance()(2 * vae.decode(vae.encode(x).mean) - 1, 2 * x - 1).mean().item()
    assert reconstruction_scores(vae, pictures, str(weights_dir), 0)["lpips"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_reconstructions_are_decoded_means_from_a_position_on(
    first: int, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "batch_of", lambda size: 3)
    pictures, model = real_pictures_of(drawn(cache_dir), None).reference, TinyAutoencoder().eval()
    x = batch(pictures).image
    with torch.inference_mode():
        expected = model.decode(model.encode(x).mean).mul(255).round().numpy().astype(np.uint8)
    found = [*reconstructions(model, pictures, first), np.zeros((0, 3, SIZE, SIZE), np.uint8)]
    assert [len(part) for part in found[:-1]] == ([3] * ((4 - first) // 3) + [(4 - first) % 3] * bool((4 - first) % 3))
    np.testing.assert_allclose(np.concatenate(found).astype(int), expected[first:].astype(int), atol=1)
    assert found[0].dtype == np.uint8
