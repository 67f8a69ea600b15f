import torch
from torch.distributions import Normal

from flowergen.losses.kl import kl_standard_normal
from flowergen.nn.posterior import LOGVAR_MAX, LOGVAR_MIN, Posterior, bounded_logvar


def test_the_bound_changes_values_outside_only_and_exactly():
    """Inside nothing changes by a bit; outside the bound itself comes out, however far the raw value is."""
    inside = torch.linspace(LOGVAR_MIN, LOGVAR_MAX, 1001)
    assert torch.equal(bounded_logvar(inside), inside)
    outside = torch.tensor([-1e38, -3e8, -1000.0, 1000.0, 3e8, 1e38])
    expected = torch.tensor([LOGVAR_MIN] * 3 + [LOGVAR_MAX] * 3)
    assert torch.equal(bounded_logvar(outside), expected)


def test_the_gradient_survives_beyond_the_bound():
    """At raw +-1000 the KL still pulls the log variance back: its gradient is that of the bounded value."""
    raw = torch.tensor([[-1000.0], [0.5], [1000.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_standard_normal(torch.zeros(3, 1), bounded_logvar(raw)).sum(), raw)
    bounded = torch.tensor([[LOGVAR_MIN], [0.5], [LOGVAR_MAX]])
    torch.testing.assert_close(gradient, torch.expm1(bounded) / 2)


def test_samples_follow_the_posterior():
    """Z = mu + sigma eps, against torch.distributions' inverse CDF in float64."""
    mean, logvar = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    eps = torch.randn(4, 3, 2, 2)
    q = Normal(mean.double(), (0.5 * logvar.double()).exp())
    expected = q.icdf(Normal(0.0, 1.0).cdf(eps.double()))
    torch.testing.assert_close(Posterior(mean, logvar).sample(eps).double(), expected, rtol=1e-5, atol=1e-5)


def test_moments_in_half_precision_give_a_float32_posterior():
    """The first half are the means, the second the log variances."""
    moments = torch.tensor([1.0, 2.0, -3.0, 1000.0], dtype=torch.bfloat16)[None, :, None, None]
    posterior = Posterior.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [1.0, 2.0]
    assert posterior.logvar.flatten().tolist() == [-3.0, LOGVAR_MAX]
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32


def test_printed_by_its_shapes():
    zeros = torch.zeros(2, 3, 4, 4)
    assert repr(Posterior(zeros, zeros)) == "Posterior(mean: (2, 3, 4, 4), logvar: (2, 3, 4, 4))"
