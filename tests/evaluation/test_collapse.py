import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from flowergen.evaluation import collapse
from flowergen.evaluation.collapse import Collapse, index_information, measure_collapse, verdict
from flowergen.metrics.active_units import ActiveUnits
from flowergen.nn.posterior import Posterior

BETA = {"beta": 4.0, "beta_warmup_steps": 100, "divergence": "kl"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(mean: Tensor, logvar: Tensor) -> Collapse:
    every = torch.arange(len(mean))
    return measure_collapse(Posterior(mean, logvar), every, normal(*mean.shape, seed=9))


def healthy(num: int = 400, dims: int = 16, sigma: float = 0.3) -> tuple[Tensor, Tensor]:
    """Posteriors of one width whose aggregate is N(0, I)."""
    mean = math.sqrt(1 - sigma**2) * normal(num, dims, 1, 1)
    return mean, torch.full_like(mean, 2 * math.log(sigma))


# -- figures


@pytest.mark.parametrize("shape", [(6, 1, 1), (2, 3, 4)])
def test_figures_are_those_of_torch_s_distributions(shape: tuple[int, int, int]) -> None:
    """KL of each dimension averaged over pictures; mean and variance of the mixture; KL of its Gaussian; over several parts."""
    mean, logvar = 2 * normal(300, *shape) + 1, normal(300, *shape, seed=1) - 1
    mean[:, 0, 0, 0], logvar[:, 0, 0, 0] = 0.3, -0.2  # says nothing
    found = measured(mean, logvar)
    q, p = Normal(mean.double(), (logvar.double() / 2).exp()), Normal(torch.zeros(()).double(), torch.ones(()).double())
    torch.testing.assert_close(found.kl, kl_divergence(q, p).mean(0), rtol=1e-5, atol=1e-6)
    aggregate = MixtureSameFamily(
        Categorical(torch.ones(*shape, 300).double()), Normal(q.loc.movedim(0, -1), q.scale.movedim(0, -1))
    )
    torch.testing.assert_close(found.mean, aggregate.mean)
    torch.testing.assert_close(found.variance, aggregate.variance)
    gaussian = Normal(aggregate.mean, aggregate.stddev)
    torch.testing.assert_close(found.aggregate_kl, kl_divergence(gaussian, p))
    units = ActiveUnits()
    units.update(mean)
    assert int(found.active.sum()) == units.compute().item() == math.prod(shape) - 1
    assert not found.active[0, 0, 0]


def test_the_kl_is_information_bound_and_aggregate_kl_in_every_dimension() -> None:
    """Exactly, whatever the posteriors are."""
    found = measured(3 * normal(200, 4, 2, 2), 2 * normal(200, 4, 2, 2, seed=1))
    torch.testing.assert_close(found.information_bound + found.aggregate_kl, found.kl, rtol=1e-5, atol=1e-5)


def test_the_information_bound_of_a_gaussian_channel_is_its_capacity() -> None:
    """mu ~ N(0, 1 - s^2) and noise s: -log s nats a dimension, and nothing to the aggregate."""
    posterior = Posterior(*healthy(20_000, 3, sigma=0.2))
    found = measure_collapse(posterior, torch.arange(4), normal(4, 3, 1, 1))
    torch.testing.assert_close(found.information_bound.flatten(), torch.full((3,), -math.log(0.2)).double(), rtol=0, atol=0.02)
    assert found.aggregate_kl.max() < 1e-3
    assert found.num_compared == 4


def test_silent_dimensions_are_those_below_a_hundredth_of_a_nat() -> None:
    mean = torch.tensor([0.0, 0.14, 0.142, 1.0]).expand(5, 4)[..., None, None]  # KL mu^2 / 2: 0, 0.0098, 0.01008, 0.5
    assert measured(mean, torch.zeros_like(mean)).num_silent == 2


# -- information


def brute_force(mean: Tensor, logvar: Tensor, eps: Tensor) -> float:
    mu, sigma = mean.double().flatten(1), (logvar.double() / 2).exp().flatten(1)
    z = mu + sigma * eps.double().flatten(1)
    posterior = Independent(Normal(mu, sigma), 1)
    aggregate = MixtureSameFamily(Categorical(torch.ones(len(mu)).double()), posterior)
    return (posterior.log_prob(z) - aggregate.log_prob(z)).mean().item()


@pytest.mark.parametrize("width", [-3.0, 0.0, 1.0])
def test_information_is_the_log_ratio_of_posterior_and_mixture(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's distributions, from the same draws; in several parts of the dimensions; far from the origin."""
    monkeypatch.setattr(collapse, "DIMS_PER_CHUNK", 3)
    mean, logvar, eps = normal(40, 2, 2, 2) + 50, normal(40, 2, 2, 2, seed=1) + width, normal(40, 2, 2, 2, seed=2)
    expected = brute_force(mean, logvar, eps)
    assert 0.2 < expected < math.log(40) + 1e-9
    assert index_information(Posterior(mean, logvar), eps) == pytest.approx(expected, abs=1e-6)


def test_information_of_a_gaussian_channel_is_its_closed_form() -> None:
    """I = -log s for mu ~ N(0, 1 - s^2) and noise s, as long as there are many more pictures than e^I."""
    mean, logvar = healthy(3000, 1, sigma=0.3)
    assert index_information(Posterior(mean, logvar), normal(3000, 1, 1, 1, seed=5)) == pytest.approx(-math.log(0.3), abs=0.05)


@pytest.mark.parametrize("logvar", [-30.0, -10.0])
def test_pictures_told_apart_have_the_logarithm_of_their_number_and_copies_half_of_it(logvar: float) -> None:
    """Also where posteriors are points and float64 loses digits in the squares."""
    mean, eps = normal(20, 3, 4, 4) + 100, normal(20, 3, 4, 4, seed=1)
    narrow = torch.full_like(mean, logvar)
    assert index_information(Posterior(mean, narrow), eps) == pytest.approx(math.log(20), abs=1e-9)
    mean[10:] = mean[:10]
    assert index_information(Posterior(mean, narrow), eps) == pytest.approx(math.log(10), abs=0.02)
    mean[:] = mean[0]
    assert index_information(Posterior(mean, torch.zeros_like(mean)), eps) == pytest.approx(0, abs=1e-12)


# -- all directions together


def test_the_largest_variance_is_the_largest_eigenvalue_of_the_covariance() -> None:
    basis, _ = torch.linalg.qr(normal(8, 8))
    mean = (normal(500, 8) * torch.tensor([5.0, 2, 1, 1, 1, 1, 1, 1]) @ basis.T).view(500, 2, 2, 2)
    found = measured(mean, torch.full_like(mean, -1.0))
    expected = np.linalg.eigvalsh(np.cov(mean.flatten(1).double().numpy(), rowvar=False, ddof=0))[-1] + math.exp(-1)
    assert found.largest_variance == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("num", "dims"), [(800, 40), (300, 300), (100, 900)])
def test_that_of_the_prior_is_that_of_as_many_draws_from_it(num: int, dims: int) -> None:
    found = measured(normal(num, dims, 1, 1), torch.full((num, dims, 1, 1), -20.0))
    assert found.largest_variance == pytest.approx(found.largest_of_prior, rel=0.08)


# -- in words


def collapsed(num: int = 400, dims: int = 16) -> tuple[Tensor, Tensor]:
    return 0.01 * normal(num, dims, 1, 1), 0.01 * normal(num, dims, 1, 1, seed=1)


def partly_collapsed() -> tuple[Tensor, Tensor]:
    parts = [torch.cat(pair, dim=1) for pair in zip(healthy(400, 31), collapsed(400, 97), strict=True)]
    return parts[0], parts[1]


def test_what_is_collapsed_in_part_or_healthy_is_told_apart() -> None:
    total, part, none = (verdict(measured(*q), BETA) for q in (collapsed(), partly_collapsed(), healthy()))
    assert total[0].startswith("Posterior collapse: a latent tells 0.0")
    assert "16 of 16 dimensions carry less than 0.01 nats" in total[0]
    for lines in (total, part):
        assert "lower model.beta=4 or warm it up longer (model.beta_warmup_steps=100)" in lines[0]
    assert part[0].startswith("Partial collapse: 97 of 128 dimensions carry less than 0.01 nats:")
    assert "a smaller latent will do" in part[0]
    assert none == [
        "No collapse: 0 of 16 dimensions carry less than 0.01 nats, and a latent tells 5.99 of 5.99 nats about which of 400 "
        "pictures it belongs to.",
        none[1],
    ]
    for lines in (total, part, none):
        assert "lie about where N(0, I) does (" in lines[-1]
        assert "samples from N(0, I) lie off" not in lines[-1]


@pytest.mark.parametrize("kind", ["all alike, off the prior", "spatial"])
def test_posteriors_that_are_alike_are_collapsed_whatever_their_kl(kind: str) -> None:
    mean, logvar = torch.full((60, 4, 2, 2), 0.5), torch.zeros(60, 4, 2, 2)
    if kind == "spatial":
        mean, logvar = (moment.view(60, 4, 2, 2) for moment in collapsed(60))
    assert verdict(measured(mean, logvar), BETA)[0].startswith("Posterior collapse")


def test_latents_that_are_small_but_told_apart_are_not_collapsed() -> None:
    """No active unit, as Burda's threshold counts in units of the prior, and yet every picture has a place of its own."""
    found = measured(0.05 * normal(60, 4, 2, 2), torch.full((60, 4, 2, 2), -12.0))
    assert not found.active.any()
    lines = verdict(found, BETA)
    assert lines[0].startswith("No collapse")
    assert "much narrower in 16 of 16" in lines[1]


def test_latents_off_the_prior_are_told_from_those_on_it() -> None:
    """Wider, narrower, both, and right dimension by dimension but not together."""
    mean, logvar = healthy()
    factor = torch.tensor([10.0, 0.1] * 8).view(16, 1, 1)
    one_direction = 2 * normal(400, 1, 1, 1, seed=3) * torch.ones(16, 1, 1) * 0.5 + 0.1 * mean
    found = {
        "much wider in 16 of 16 dimensions": (10 * mean, logvar),
        "much narrower in 16 of 16": (0.1 * mean, logvar - 3),
        "much wider in 8 and narrower in 8 of 16": (factor * mean, logvar - 3),
        "does (root mean square of a dimension": (one_direction, logvar),
    }
    for words, q in found.items():
        line = verdict(measured(*q), BETA)[1]
        assert words in line
        assert "flowergen.sample, source=mixture" in line
        assert "raise model.beta=4" in line
        assert ("but not together" in line) == (q[0] is one_direction)
        diffused = verdict(measured(*q), BETA, diffused=True)[1]
        assert diffused.endswith("The diffusion of this run learns where they lie, so this does no harm.")
    assert "much wider" in verdict(measured(mean + 3, logvar), BETA)[1], "E z^2 counts the mean"


def test_advice_names_only_what_the_model_has() -> None:
    q = measured(*collapsed())
    assert "give the divergence from the prior a smaller weight" in verdict(q, {})[0]
    assert "model.beta" not in " ".join(verdict(q, {}))
    assert "lower model.beta=0.5." in verdict(q, {"beta": 0.5})[0]
    assert "lower" not in verdict(q, {"beta": 0.0, "beta_warmup_steps": 0})[0]
    assert "give the divergence a larger weight" in verdict(measured(10 * healthy()[0], healthy()[1]), {})[1]
    mmd: dict[str, Any] = {**BETA, "divergence": "mmd"}
    assert any("MMD" in line for line in verdict(measured(*healthy()), mmd))
    assert not any("MMD" in line for line in verdict(measured(*healthy()), BETA))


def test_few_pictures_are_said_to_be_few() -> None:
    mean, logvar = healthy(400)
    one = measured(mean[:1], logvar[:1])
    assert one.information == 0
    (line,) = verdict(one, BETA)
    assert "One picture" in line
    assert "rough" in verdict(measured(mean[:5], logvar[:5]), BETA)[-1]
    assert "rough" not in verdict(measured(mean, logvar), BETA)[-1]
