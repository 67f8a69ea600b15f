from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowergen.errors import UserError
from flowergen.evaluation import sampling
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.evaluation.latent_prior import LatentPrior, fit_latent_prior
from flowergen.evaluation.sampling import (
    MAX_STATES,
    NO_CLASS,
    LatentSampler,
    autoencoder_sampler,
    diffusion_sampler,
    first_samples,
    group_starts,
    labels_by_frequency,
    labels_of_classes,
    pictures,
    trajectory,
)
from flowergen.randomness import normal_per_sample
from tests.tiny_models import SIZE, TinyAutoencoder, diffusion

NONE = torch.full((7,), NO_CLASS)


def all_of(sampler: LatentSampler, labels: Tensor, batch_size: int) -> Tensor:
    """Every picture, having seen that they come in order."""
    parts, expected = [], 0
    for first, x in pictures(sampler, labels, batch_size, halve=False):
        assert first == expected
        assert len(x) <= batch_size
        parts.append(x)
        expected += len(x)
    return torch.cat(parts)


def prior(classes: int = 3, missing: int | None = None) -> LatentPrior:
    """Of 30 training pictures; the latents of class c lie around 5 c."""
    label = torch.arange(30) % classes
    if missing is not None:
        label = torch.where(label == missing, -1, label)
    latents = torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 5 * label[:, None, None, None]
    return fit_latent_prior(latents.flatten(1), label, classes)


# -- pictures


@pytest.mark.parametrize("kind", ["latents", "pixels", "unlabelled"])
def test_the_batch_size_changes_no_picture_of_a_diffusion_model(kind: str) -> None:
    model = diffusion(on_pixels=kind == "pixels")
    labels = NONE if kind == "unlabelled" else torch.arange(7) % 3
    sampler = diffusion_sampler(model, model.sampling, seed=5)
    whole = all_of(sampler, labels, 64)
    assert whole.shape == (7, 3, SIZE, SIZE)
    assert 0 <= whole.min() <= whole.max() <= 1
    for batch_size in (1, 3):
        torch.testing.assert_close(all_of(sampler, labels, batch_size), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(all_of(sampler, labels[:2], 64), whole[:2], rtol=0, atol=1e-4)
    assert (all_of(diffusion_sampler(model, model.sampling, seed=6), labels, 64) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("source", ["auto", "prior", "classes"])
def test_the_batch_size_changes_no_picture_of_an_autoencoder(source: str) -> None:
    labels = torch.arange(7) % 3 if source == "classes" else NONE
    sampler = autoencoder_sampler(
        TinyAutoencoder().eval(), prior(), "auto" if source == "classes" else source, source == "classes", seed=5
    )
    whole = all_of(sampler, labels, 64)
    assert whole.shape == (7, 3, SIZE, SIZE)
    for batch_size in (1, 3):
        torch.testing.assert_close(all_of(sampler, labels, batch_size), whole, rtol=0, atol=1e-4)


def test_pictures_of_a_diffusion_model_are_its_decoded_latents() -> None:
    """In the autoencoder's units, of the class that is asked for; without one, of none."""
    model = diffusion()
    model.set_latent_scale(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    sampler = diffusion_sampler(model, model.sampling, seed=5)
    with torch.inference_mode():
        expected = model.decode(model.denoised(range(7), torch.arange(7) % 3, 5, model.sampling))
        (*_, (unconditional, _)) = model.denoise(range(7), torch.full((7,), 3), 5, model.sampling)
        expected_none = model.decode(model.unscaled(unconditional))
    torch.testing.assert_close(all_of(sampler, torch.arange(7) % 3, 4), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(first_samples(sampler, 7), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(all_of(sampler, NONE, 4), expected_none, rtol=0, atol=1e-4)
    assert (expected_none - expected).abs().max() > 1e-2


def test_it_says_how_it_samples() -> None:
    model = diffusion()
    assert diffusion_sampler(model, model.sampling, 0).description == "4 steps of dpmpp_2m, guidance 2"
    part = replace(model.sampling, guidance_interval=[0.2, 0.8], guidance_scale=1.5)
    assert diffusion_sampler(model, part, 0).description == "4 steps of dpmpp_2m, guidance 1.5 within [0.2, 0.8]"
    rounded = FastNetwork(model.inference_net, bf16=True, compiled=False)
    assert diffusion_sampler(model, model.sampling, 0, rounded).description == "4 steps of dpmpp_2m, guidance 2, in bf16"
    fitted = prior()
    two = replace(fitted, weights=fitted.weights.repeat(2) / 2)
    for given, source, by_class, says in (
        (None, "auto", False, "N(0, I)"),
        (two, "prior", False, "N(0, I)"),
        (fitted, "auto", False, "a Gaussian fitted to the training latents"),
        (two, "auto", False, "a mixture of 2 Gaussians fitted to the training latents"),
        (two, "auto", True, "a Gaussian for each class, fitted to the training latents"),
    ):
        assert autoencoder_sampler(TinyAutoencoder(), given, source, by_class, 0).description == f"latents from {says}"
    assert autoencoder_sampler(TinyAutoencoder(), two, "auto", False, 0, "9 of them").description.endswith(
        "2 Gaussians fitted to 9 of them"
    )


# -- autoencoders


def test_an_autoencoder_draws_from_its_mixture_where_there_is_one_and_from_the_prior_where_asked_to() -> None:
    model, fitted = TinyAutoencoder().eval(), prior()
    mixture = fitted.sample(range(7), 5).view(7, 2, 4, 4)
    standard = normal_per_sample(range(7), (2, 4, 4), seed=5, purpose="prior")
    for source, kept, expected in (
        ("auto", fitted, mixture),
        ("mixture", fitted, mixture),
        ("prior", fitted, standard),
        ("auto", None, standard),
        ("prior", None, standard),
    ):
        z = autoencoder_sampler(model, kept, source, False, 5).draw(range(7), NONE)
        torch.testing.assert_close(z, expected, rtol=0, atol=0)


def test_classes_are_drawn_from_their_own_gaussians() -> None:
    labels = torch.tensor([2, 0, 1, 0])
    z = autoencoder_sampler(TinyAutoencoder().eval(), prior(), "auto", True, 0).draw(range(4), labels)
    assert z.shape == (4, 2, 4, 4)
    torch.testing.assert_close(z.mean((1, 2, 3)), 5.0 * labels, rtol=0, atol=1.5)


def test_what_the_run_has_not_stored_is_said() -> None:
    model = TinyAutoencoder().eval()
    with pytest.raises(UserError, match=r"source=mixture: .*no mixture model.*source=prior"):
        autoencoder_sampler(model, None, "mixture", False, 0)
    with pytest.raises(UserError, match=r"classes=: .*no mixture model"):
        autoencoder_sampler(model, None, "auto", True, 0)


def test_a_class_without_a_gaussian_is_named() -> None:
    sampler = autoencoder_sampler(TinyAutoencoder().eval(), prior(missing=1), "auto", True, 0)
    sampler.draw([0, 1], torch.tensor([0, 2]))
    with pytest.raises(UserError, match="class 1 has no training picture"):
        sampler.draw([0, 1, 2], torch.tensor([0, 2, 1]))


# -- memory


class SmallMemory:
    """Draws latents that name their sample, for as many as fit; and counts how many it was asked for."""

    def __init__(self, fits: int):
        self.fits, self.asked = fits, list[int]()

    def __call__(self, index: Sequence[int], label: Tensor) -> Tensor:
        self.asked.append(len(index))
        if len(index) > self.fits:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return torch.tensor(index).float()[:, None, None, None].expand(-1, 2, 4, 4) / 10


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_no_picture_is_lost() -> None:
    model, memory = TinyAutoencoder().eval(), SmallMemory(fits=3)
    sampler = LatentSampler(model, memory, "")
    parts = list(pictures(sampler, torch.full((8,), NO_CLASS), 13, halve=True))
    assert memory.asked == [8, 6, 3, 3, 2], "13, 6, 3, and no attempt at more again"
    assert [first for first, _ in parts] == [0, 3, 6]
    with torch.no_grad():
        expected = model.decode(SmallMemory(fits=8)(range(8), NONE))
    torch.testing.assert_close(torch.cat([x for _, x in parts]), expected, rtol=0, atol=1e-5)


def test_a_decoder_that_runs_out_of_memory_counts_too() -> None:
    model = TinyAutoencoder().eval()
    decode = model.decode

    def small(z: Tensor) -> Tensor:
        if len(z) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return decode(z)

    model.decode = small  # type: ignore[method-assign]
    parts = list(pictures(LatentSampler(model, SmallMemory(fits=8), ""), torch.full((3,), NO_CLASS), 4, halve=True))
    assert [first for first, _ in parts] == [0, 1, 2]


@pytest.mark.parametrize(("fits", "batch_size", "halve"), [(3, 4, False), (0, 4, True), (0, 1, True)])
def test_where_it_may_not_or_cannot_be_halved_the_error_is_the_user_s(fits: int, batch_size: int, halve: bool) -> None:
    sampler = LatentSampler(TinyAutoencoder().eval(), SmallMemory(fits), "")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(pictures(sampler, torch.full((8,), NO_CLASS), batch_size, halve))


# -- trajectories


@pytest.mark.parametrize(
    ("sampler", "objective"), [("dpmpp_2m", "v"), ("ddpm", "x0"), ("ddim", "v"), ("euler", "flow"), ("heun", "flow")]
)
@pytest.mark.parametrize("on_pixels", [False, True])
def test_a_trajectory_leads_from_the_noise_to_the_sample(on_pixels: bool, sampler: str, objective: str) -> None:
    model = diffusion(on_pixels=on_pixels, objective=objective)
    if not on_pixels:
        model.set_latent_scale(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    settings = replace(model.sampling, sampler=sampler, steps=3, eta=1.0 if sampler == "ddim" else 0.0)
    labels = torch.tensor([0, 2, NO_CLASS, 1])
    x_t, x0_hat = trajectory(model, [1, 3], labels[[1, 3]], 5, settings)
    assert x_t.shape == x0_hat.shape == (2, 4, *model.latent_shape)
    noise = normal_per_sample([1, 3], model.latent_shape, seed=5, purpose="prior")
    torch.testing.assert_close(x_t[:, 0], model.unscaled(noise))
    torch.testing.assert_close(x0_hat[:, -1], x_t[:, -1], rtol=0, atol=0)
    torch.testing.assert_close(x0_hat[:, -2], x_t[:, -1], rtol=1e-4, atol=1e-4, msg="the last step takes the last guess")
    whole = all_of(diffusion_sampler(model, settings, 5), labels, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.decode(x_t[:, -1]), whole[[1, 3]], rtol=0, atol=1e-4)


def test_a_trajectory_of_a_sample_drawn_in_bf16_leads_to_it() -> None:
    model, labels = diffusion(), torch.tensor([0, 2])
    net = FastNetwork(model.inference_net, bf16=True, compiled=False)
    drawn = all_of(diffusion_sampler(model, model.sampling, 5, net), labels, 64)
    ends = [trajectory(model, [0, 1], labels, 5, model.sampling, each)[0][:, -1] for each in (net, None)]
    with torch.inference_mode():
        in_bf16, in_float32 = (model.decode(end) for end in ends)
    torch.testing.assert_close(in_bf16, drawn, rtol=0, atol=1e-5)
    assert (in_float32 - drawn).abs().max() > 1e-4


# -- which classes


@pytest.mark.parametrize("counts", [[60, 30, 10], [0, 5, 0, 15, 0]])
def test_classes_come_as_often_as_in_training(counts: list[int]) -> None:
    labels = labels_by_frequency(20_000, len(counts), torch.tensor(counts), seed=0)
    assert labels.dtype == torch.int64
    share = torch.bincount(labels, minlength=len(counts)) / 20_000
    torch.testing.assert_close(share, torch.tensor(counts) / sum(counts), rtol=0, atol=0.015)
    assert not share[torch.tensor(counts) == 0].any(), "a class without pictures never"


@pytest.mark.parametrize(("u", "label"), [(0.0, 1), (0.25, 3), (0.24999, 1), (0.99999, 3)])
def test_a_draw_on_the_border_of_two_classes_is_the_next_that_has_pictures(
    u: float, label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Draw:
        def random(self) -> float:
            return u

    monkeypatch.setattr(sampling, "generator", lambda seed, step, purpose: Draw())
    assert labels_by_frequency(1, 5, torch.tensor([0, 5, 0, 15, 0]), seed=0).tolist() == [label]


def test_a_sample_s_class_depends_on_seed_and_number_alone() -> None:
    def labels(num: int, seed: int) -> list[int]:
        return labels_by_frequency(num, 3, torch.tensor([5, 3, 2]), seed).tolist()

    assert labels(50, 1)[:10] == labels(10, 1)
    assert labels(50, 1) != labels(50, 2)


def test_without_counts_classes_take_turns_and_without_classes_there_is_none() -> None:
    assert labels_by_frequency(7, 3, None, 0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels_by_frequency(3, 0, None, 0).tolist() == [NO_CLASS] * 3
    assert labels_by_frequency(3, 0, torch.tensor([1, 2]), 0).tolist() == [NO_CLASS] * 3


def test_named_classes_come_one_after_the_other() -> None:
    labels = labels_of_classes([4, 0], 3)
    assert labels.tolist() == [4, 4, 4, 0, 0, 0]
    assert group_starts(labels) == [0, 3]
    assert group_starts(torch.tensor([1, 1, 0, 1])) == [0, 2, 3]
    assert group_starts(torch.empty(0)) == []


def test_a_sampler_takes_the_averaged_weights() -> None:
    model = diffusion(ema_decay=0.9)
    sampler = diffusion_sampler(model, model.sampling, 0)
    before = all_of(sampler, NONE[:2], 2)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(1)
    torch.testing.assert_close(all_of(sampler, NONE[:2], 2), before, rtol=0, atol=0)


def test_of_many_steps_a_bounded_number_of_states_is_kept() -> None:
    """The first is the noise, and the last of both the sample all the same."""
    model = diffusion()
    settings = replace(model.sampling, steps=100)
    x_t, x0_hat = trajectory(model, [3], torch.tensor([1]), 5, settings)
    assert x_t.shape == x0_hat.shape == (1, MAX_STATES, *model.latent_shape)
    with torch.inference_mode():
        expected = model.denoised([3], torch.tensor([1]), 5, settings)
    torch.testing.assert_close(x_t[:, -1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(x0_hat[:, -1], expected, rtol=0, atol=1e-4)
    noise = normal_per_sample([3], model.latent_shape, seed=5, purpose="prior")
    torch.testing.assert_close(x_t[:, 0], model.unscaled(noise), rtol=0, atol=1e-6)
