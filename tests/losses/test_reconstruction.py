import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import Bernoulli, Laplace, Normal

from flowergen.losses.reconstruction import (
    SIGMA_MIN,
    absolute_error,
    bernoulli,
    gaussian,
    gaussian_elbo,
    optimal_log_sigma,
    squared_error,
)

N, D = 4, 3 * 8 * 8


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(N, 3, 8, 8, generator=g)
    return x + 0.1 * torch.randn(N, 3, 8, 8, generator=g), x


def test_squared_error_is_a_gaussian_likelihood_without_constants(pair):
    """-log N(x; x_hat, 1) = SSE / 2 + D/2 log 2 pi."""
    x_hat, x = pair
    expected = -2 * Normal(x_hat.double(), 1.0).log_prob(x.double()).sum((1, 2, 3)) - D * math.log(2 * math.pi)
    torch.testing.assert_close(squared_error(x_hat, x).double(), expected, rtol=1e-4, atol=1e-4)


def test_absolute_error_is_a_laplace_likelihood_without_constants(pair):
    """-log Laplace(x; x_hat, 1) = sum |x_hat - x| + D log 2."""
    x_hat, x = pair
    expected = -Laplace(x_hat.double(), 1.0).log_prob(x.double()).sum((1, 2, 3)) - D * math.log(2)
    torch.testing.assert_close(absolute_error(x_hat, x).double(), expected, rtol=1e-5, atol=1e-5)


def test_bernoulli_equals_torch_distributions(pair):
    """For binary pictures, and with logits of +-200, where a sigmoid before a logarithm gives infinities."""
    _, x = pair
    x = x.round()
    logits = torch.linspace(-200, 200, x.numel()).reshape(x.shape)
    expected = -Bernoulli(logits=logits.double()).log_prob(x.double()).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli(logits, x).double(), expected, rtol=1e-5, atol=1e-5)


def test_gaussian_equals_torch_distributions(pair):
    """The whole negative log likelihood, constants included, for any sigma."""
    x_hat, x = pair
    for log_sigma in (-3.0, 0.0, 1.5):
        expected = -Normal(x_hat.double(), math.exp(log_sigma)).log_prob(x.double()).sum((1, 2, 3))
        nll = gaussian(x_hat, x, torch.tensor(log_sigma))
        assert nll.shape == (N,)
        torch.testing.assert_close(nll.double(), expected, rtol=1e-4, atol=1e-3)


def test_optimal_sigma_minimises_the_negative_log_likelihood(pair):
    """scipy's scalar minimiser finds the same sigma, and there the value is D/2 (1 + log 2 pi sigma*^2)."""
    x_hat, x = (images.double() for images in pair)

    def nll(log_sigma):
        return -Normal(x_hat, math.exp(log_sigma)).log_prob(x).sum().item() / N

    found = minimize_scalar(nll, bounds=(-6, 2), method="bounded", options={"xatol": 1e-9})
    log_sigma = optimal_log_sigma(*pair)
    assert log_sigma.shape == ()
    assert log_sigma.item() == pytest.approx(found.x, abs=1e-5)
    value = gaussian(*pair, log_sigma).mean().item()
    assert value == pytest.approx(found.fun, rel=1e-5)
    assert value == pytest.approx(D / 2 * (1 + math.log(2 * math.pi) + 2 * log_sigma.item()), rel=1e-5)


def test_the_gradient_needs_no_path_through_optimal_sigma(pair):
    """d/dx_hat of D/2 log MSE, sigma eliminated, equals that of the likelihood with sigma detached."""
    x_hat, x = pair
    x_hat = x_hat.requires_grad_()
    log_sigma = optimal_log_sigma(x_hat, x)
    assert not log_sigma.requires_grad
    (gradient,) = torch.autograd.grad(gaussian(x_hat, x, log_sigma).sum(), x_hat)
    (eliminated,) = torch.autograd.grad(N * D / 2 * (x_hat - x).square().mean().log(), x_hat)
    torch.testing.assert_close(gradient, eliminated)


def test_a_perfect_reconstruction_is_finite():
    """Sigma stops at the rounding error of 8-bit pictures, whose standard deviation it is."""
    exact = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounding = (exact * 255).round() / 255 - exact
    assert rounding.std().item() == pytest.approx(SIGMA_MIN, rel=1e-2)
    x = torch.rand(2, 3, 8, 8)
    assert optimal_log_sigma(x, x).item() == pytest.approx(math.log(SIGMA_MIN))
    assert gaussian(x, x, optimal_log_sigma(x, x)).isfinite().all()
    assert math.isfinite(gaussian_elbo(0.0, 0.0, 2, D))


def test_losses_are_per_sample_and_summed_in_float32(pair):
    """Each sample's value is its own, and half-precision pictures are widened before the sum."""
    x_hat, x = pair
    for loss in (squared_error, absolute_error, bernoulli, lambda a, b: gaussian(a, b, torch.tensor(-1.0))):
        values = loss(x_hat, x)
        assert values.shape == (N,)
        torch.testing.assert_close(values[2:3], loss(x_hat[2:3], x[2:3]))
        assert torch.equal(loss(x_hat.half(), x), loss(x_hat.half().float(), x))


def test_gaussian_elbo_is_the_batch_likelihood_minus_kl(pair):
    """From sums over the set: minus the mean of `gaussian` at the optimal sigma, minus the mean KL."""
    x_hat, x = (images.double() for images in pair)
    sse = (x_hat - x).square().sum().item()
    sigma = math.sqrt(sse / (N * D))
    expected = Normal(x_hat, sigma).log_prob(x).sum().item() / N - 12.5 / N
    assert gaussian_elbo(sse, 12.5, N, D) == pytest.approx(expected, rel=1e-12)


def test_gaussian_elbo_at_the_floor_is_the_likelihood_with_that_sigma(pair):
    """Where the error is below rounding the formula keeps to a sigma that it could justify."""
    _, x = (images.double() for images in pair)
    x_hat = x + SIGMA_MIN / 3
    sse = (x_hat - x).square().sum().item()
    expected = Normal(x_hat, SIGMA_MIN).log_prob(x).sum().item() / N
    assert gaussian_elbo(sse, 0.0, N, D) == pytest.approx(expected, rel=1e-9)
