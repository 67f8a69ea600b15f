import torch
from torch.distributions import Normal, kl_divergence

from flowergen.losses.kl import kl_standard_normal


def test_kl_equals_torch_distributions():
    """Against the third party in float64, summed over every latent dimension, one value per sample."""
    mean, logvar = 3 * torch.randn(5, 4, 2, 3), 3 * torch.randn(5, 4, 2, 3)
    q = Normal(mean.double(), (0.5 * logvar.double()).exp())
    expected = kl_divergence(q, Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())).sum((1, 2, 3))
    kl = kl_standard_normal(mean, logvar)
    assert kl.shape == (5,)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_keeps_its_digits_near_the_prior():
    """At logvar = 1e-3 the KL is 2.5e-7 a dimension: exp(logvar) - 1 - logvar would have lost it in float32."""
    logvar = torch.tensor([[1e-3], [-1e-3], [5e-4]])
    exact = 0.5 * (torch.expm1(logvar.double()) - logvar.double()).flatten()
    torch.testing.assert_close(kl_standard_normal(torch.zeros(3, 1), logvar).double(), exact, rtol=1e-3, atol=0)
    assert kl_standard_normal(torch.zeros(2, 8), torch.zeros(2, 8)).tolist() == [0.0, 0.0]


def test_the_gradient_is_the_closed_form():
    """d/dmu = mu, d/dlogvar = (sigma^2 - 1) / 2."""
    mean, logvar = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    kl_standard_normal(mean, logvar).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(logvar.grad, torch.expm1(logvar.detach()) / 2)


def test_half_precision_is_summed_in_float32():
    """The KL of 4,096 half-precision dimensions equals that of the same numbers in float32."""
    mean, logvar = torch.randn(2, 4096).half(), torch.randn(2, 4096).half()
    assert torch.equal(kl_standard_normal(mean, logvar), kl_standard_normal(mean.float(), logvar.float()))
