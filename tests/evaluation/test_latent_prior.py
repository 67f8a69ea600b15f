import numpy as np
import pytest
import torch
from torch import Tensor

from flowergen.evaluation import latent_prior
from flowergen.evaluation.latent_prior import LatentPrior, fit_latent_prior


def gaussian(num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated draws (num, 5), and the mean and covariance that they come from."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=g)
    root[:, 0] *= 3
    mean = torch.tensor([1.0, -2.0, 0.0, 5.0, 10.0])
    return mean + torch.randn(num, 5, generator=g) @ root.T, mean, root @ root.T


def clusters(num: int) -> tuple[Tensor, Tensor]:
    """A quarter of the points around (8, 0, 0), the others around (-8, 0, 0), and which: labels 1 and 0."""
    label = (torch.arange(num) % 4 == 3).long()
    z = torch.randn(num, 3, generator=torch.Generator().manual_seed(0))
    z[:, 0] += torch.where(label == 1, 8.0, -8.0)
    return z, label


UNLABELLED = torch.full((10_000,), -1)


@pytest.mark.parametrize("num", [60, 3000])  # one Gaussian, and a mixture of many
def test_samples_have_the_mean_and_the_covariance_of_the_latents(num: int) -> None:
    """Of the very latents, not only of what they come from; the mixture's smallest variance of 0.01 is in the tolerance."""
    z, _, _ = gaussian(num)
    samples = fit_latent_prior(z, UNLABELLED[:num], 0).sample(range(8_000), seed=0)
    covariance = torch.cov(z.T)
    scale = covariance.diag().sqrt()
    assert ((samples.mean(0) - z.mean(0)).abs() / scale).max() < 0.05
    assert ((torch.cov(samples.T) - covariance).abs() / (scale[:, None] * scale)).max() < 0.07


def test_directions_beyond_the_mixture_are_independent_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their variance is kept too; directions beyond the principal ones stay at the mean."""
    monkeypatch.setattr(latent_prior, "MAX_CORRELATED_DIRECTIONS", 1)
    monkeypatch.setattr(latent_prior, "MAX_PRINCIPAL_DIRECTIONS", 3)
    z, _, _ = gaussian(500)
    prior = fit_latent_prior(z, UNLABELLED[:500], 0)
    assert (prior.basis.shape, prior.means.shape[1]) == ((3, 5), 1)
    torch.testing.assert_close(prior.basis @ prior.basis.T, torch.eye(3), rtol=0, atol=1e-5)
    values, vectors = torch.linalg.eigh(torch.cov(z.double().T))
    along = (prior.sample(range(8_000), seed=0).double() - z.mean(0)) @ vectors.flip(1)  # (N, 5), largest variance first
    torch.testing.assert_close(along.var(0)[:3], values.flip(0)[:3], rtol=0.08, atol=0)
    assert along.var(0)[3:].max() < 1e-6


def test_two_clusters_are_sampled_in_proportion_and_nothing_between_them() -> None:
    """Where a single Gaussian would put most samples in the gap. Each is wider by a hundredth of the variance of all."""
    z, label = clusters(800)
    samples = fit_latent_prior(z, torch.full_like(label, -1), 0).sample(range(4000), seed=0)
    right, left = samples[:, 0] > 4, samples[:, 0] < -4
    assert (right | left).float().mean() > 0.99
    assert right.float().mean().item() == pytest.approx(0.25, abs=0.03)
    for side, center in ((right, 8.0), (left, -8.0)):
        torch.testing.assert_close(samples[side].mean(0), torch.tensor([center, 0.0, 0.0]), rtol=0, atol=0.2)
        expected = (z[label == int(center > 0)].var(0) + 0.01 * z.var(0)).sqrt()
        torch.testing.assert_close(samples[side].std(0), expected, rtol=0.07, atol=0)


def test_a_class_is_sampled_around_its_own_latents() -> None:
    """With the mean of its pictures exactly, and the spread within classes, not that between them."""
    z, label = clusters(800)
    prior = fit_latent_prior(z, label, 2)
    for c in (0, 1):
        samples = prior.sample(range(4000), seed=0, label=torch.full((4000,), c))
        torch.testing.assert_close(samples.mean(0), z[label == c].mean(0), rtol=0, atol=0.1)
        torch.testing.assert_close(samples.std(0), z[label == c].std(0), rtol=0.05, atol=0)
    mixed = prior.sample(range(6), seed=0, label=torch.tensor([0, 1] * 3))
    assert (mixed[:, 0] > 0).tolist() == [False, True] * 3


def test_the_covariance_of_a_small_class_is_shrunk_towards_that_within_all() -> None:
    """(scatter + K within) / (n + K), Friedman's equation 16 with the weight of K pictures, computed anew in the basis."""
    g = torch.Generator().manual_seed(0)
    label = torch.tensor([0] * 200 + [1] * 3)
    z = torch.randn(203, 4, generator=g)
    z[200:] = torch.tensor([5.0, 0.0, 0.0, 0.0]) + 0.1 * torch.randn(3, 4, generator=g)
    prior = fit_latent_prior(z, label, 2)
    u = ((z - prior.mean) @ prior.basis.T / prior.std).double()  # (N, 4)
    scatters = [torch.cov(u[label == c].T, correction=0) * (label == c).sum() for c in (0, 1)]
    within = (scatters[0] + scatters[1]) / 203
    for c, num in ((0, 200), (1, 3)):
        expected = (scatters[c] + 4 * within) / (num + 4)
        covariance = prior.class_cholesky[c].double() @ prior.class_cholesky[c].double().T
        torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(prior.class_means[c].double(), u[label == c].mean(0), rtol=0, atol=1e-4)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    z, label = clusters(400)
    prior = fit_latent_prior(z, label, 2)
    for classes in (None, torch.arange(10) % 2):
        together = prior.sample(range(10), 3, classes)
        torch.manual_seed(99)
        for i in (0, 7):
            alone = prior.sample([i], 3, None if classes is None else classes[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)
        assert not torch.allclose(prior.sample(range(10), 4, classes), together)
        assert len(torch.unique(together[:, 1])) == 10
    components = [(prior.sample(range(100), seed)[:, 0] > 0).tolist() for seed in (0, 1)]
    assert components[0] != components[1], "which Gaussian a sample is from depends on the seed too"


def test_a_class_without_pictures_is_nan_and_the_others_are_not() -> None:
    z, label = clusters(100)
    prior = fit_latent_prior(z, 2 * label, 4)  # classes 0 and 2
    assert prior.class_means.isnan().any(1).tolist() == [False, True, False, True]
    assert prior.class_cholesky.isfinite().all()
    assert prior.sample([0, 1], 0, torch.tensor([0, 2])).isfinite().all()


def test_pictures_without_a_label_shape_the_mixture_and_no_class() -> None:
    z, label = clusters(200)
    some = torch.where(torch.arange(200) < 20, label, -1)
    prior = fit_latent_prior(z, some, 2)
    for c in (0, 1):
        mean = prior.sample(range(2000), 0, torch.full((2000,), c)).mean(0)
        torch.testing.assert_close(mean, z[some == c].mean(0), rtol=0, atol=0.2)
    whole = fit_latent_prior(z, label, 2)
    torch.testing.assert_close(prior.sample(range(5), 0), whole.sample(range(5), 0))


@pytest.mark.parametrize("num", [2, 5])
@pytest.mark.parametrize("num_classes", [0, 1, 2])
def test_a_handful_of_pictures_is_enough(num: int, num_classes: int) -> None:
    """More dimensions than pictures, a class each or none: what comes out is finite and near them."""
    z = torch.randn(num, 64, generator=torch.Generator().manual_seed(0))
    label = torch.arange(num) % num_classes if num_classes else UNLABELLED[:num]
    prior = fit_latent_prior(z, label, num_classes)
    assert all(torch.isfinite(tensor).all() for tensor in prior.tensors().values())
    for label_or_none in (None, *(torch.full((50,), c) for c in range(num_classes))):
        samples = prior.sample(range(50), 0, label_or_none)
        assert samples.shape == (50, 64)
        assert samples.isfinite().all()
        assert (samples - z.mean(0)).norm(dim=1).max() < 6 * (z - z.mean(0)).norm(dim=1).max()


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # scikit-learn's ratio of no variance to none
def test_latents_that_do_not_vary_are_no_obstacle() -> None:
    """In one dimension or in all: samples are there too."""
    z = torch.cat((gaussian(50)[0], torch.full((50, 1), 7.0)), dim=1)
    samples = fit_latent_prior(z, UNLABELLED[:50], 0).sample(range(20), 0)
    torch.testing.assert_close(samples[:, 5], torch.full((20,), 7.0), rtol=0, atol=1e-3)
    same = fit_latent_prior(z[:1].expand(4, -1), torch.zeros(4, dtype=torch.int64), 1)
    for label in (None, torch.zeros(3, dtype=torch.int64)):
        torch.testing.assert_close(same.sample(range(3), 0, label), z[:1].expand(3, -1), rtol=0, atol=1e-3)


def test_fitting_is_a_function_of_the_latents() -> None:
    z, label = clusters(300)
    np.random.seed(1)  # scikit-learn's global state
    first = fit_latent_prior(z, label, 2).tensors()
    np.random.seed(2)
    second = fit_latent_prior(z.clone(), label, 2).tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_as_tensors_and_back_it_is_the_same_prior() -> None:
    z, label = clusters(200)
    prior = fit_latent_prior(z, label, 3)
    tensors = prior.tensors()
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())
    again = LatentPrior.from_tensors({**tensors, "latents": torch.zeros(1)})
    assert again is not None
    assert torch.equal(again.sample(range(5), 2), prior.sample(range(5), 2))
    assert torch.equal(again.class_means.isnan(), prior.class_means.isnan())
    assert LatentPrior.from_tensors({"latents": torch.zeros(1)}) is None
