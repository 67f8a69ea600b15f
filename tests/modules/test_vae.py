import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from flowergen.losses.mmd import mmd_imq
from flowergen.losses.reconstruction import gaussian_elbo
from flowergen.modules.vae import VAEModule
from flowergen.nn.blocks import ResidualBlock
from flowergen.nn.posterior import Posterior
from flowergen.randomness import initialisation

DEFAULTS: dict[str, Any] = {
    "image_size": 28,
    "seed": 0,
    "channels": [8, 16],
    "latent_dim": 6,
    "norm": "group",
    "activation": "silu",
    "residual_blocks": 0,
    "pixel_range": [0, 1],
    "reconstruction": "mse",
    "sigma": "optimal",
    "reconstruction_reduction": "sum",
    "divergence": "kl",
    "beta": 1.0,
    "beta_warmup_steps": 0,
    "optimizer": partial(torch.optim.Adam, lr=3e-3),
    "lr_schedule": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": None,
}


def make(**changes: Any) -> VAEModule:
    with initialisation(0):
        return VAEModule(**{**DEFAULTS, **changes})


def pictures(num: int, size: int = 28) -> torch.Tensor:
    """Smooth, distinct colour gradients."""
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.random((num, 3, 3, 3), dtype=np.float32))
    return torch.nn.functional.interpolate(corners, size=size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("pixel_range", [[0, 1], [-1, 1]])
def test_pictures_go_in_and_come_out_between_0_and_1_whatever_the_network_sees(pixel_range: list[int]) -> None:
    module = make(pixel_range=pixel_range).eval()
    posterior = module.encode(pictures(3))
    assert posterior.mean.shape == posterior.logvar.shape == (3, 6, 1, 1)
    x_hat = module.decode(posterior.mean)
    assert x_hat.shape == (3, 3, 28, 28)
    assert 0 <= x_hat.min() <= x_hat.max() <= 1


@pytest.mark.parametrize("pixel_range", [[0, 1], [-1, 1]])
@pytest.mark.parametrize("sigma", ["optimal", "learned"])
def test_the_gaussian_objective_is_the_elbo_of_torch_distributions(pixel_range: list[int], sigma: str) -> None:
    module = make(reconstruction="gaussian", sigma=sigma, pixel_range=pixel_range, beta=0.7).eval()
    if sigma == "learned":
        with torch.no_grad():
            module.log_sigma.fill_(-0.4)
    x = pictures(4)
    posterior = module.encode(x)
    z = posterior.sample(torch.ones_like(posterior.mean))
    logits = module._decode(module.net, z)
    terms = module.objective(x, posterior, z, logits, z)

    low, high = pixel_range
    target = (low + x * (high - low)).double()
    x_hat = (logits.sigmoid() if low == 0 else logits.tanh()).double()
    scale = torch.tensor(-0.4).exp() if sigma == "learned" else (x_hat - target).square().mean().sqrt()
    nll = -Independent(Normal(x_hat, scale), 3).log_prob(target)
    q = Independent(Normal(posterior.mean.double(), (posterior.logvar.double() / 2).exp()), 3)
    kl = kl_divergence(q, Independent(Normal(torch.zeros(4, 6, 1, 1).double(), 1.0), 3))
    torch.testing.assert_close(terms["loss_reconstruction"].double(), nll, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(terms["loss_kl"].double(), kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["loss"].double(), nll + 0.7 * kl, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    ("reconstruction", "log_prob"),
    [
        ("bce", lambda logits, x: torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x)),
        ("l1", lambda logits, x: torch.distributions.Laplace(logits.sigmoid(), 1.0).log_prob(x) + math.log(2)),
        ("mse", lambda logits, x: Normal(logits.sigmoid(), math.sqrt(0.5)).log_prob(x) + 0.5 * math.log(math.pi)),
    ],
)
def test_each_likelihood_is_the_one_that_the_docs_name(reconstruction: str, log_prob: Any) -> None:
    module = make(reconstruction=reconstruction)
    x, logits = pictures(3), torch.linspace(-4, 4, 3 * 3 * 28 * 28).view(3, 3, 28, 28)
    posterior = Posterior(torch.zeros(3, 6, 1, 1), torch.zeros(3, 6, 1, 1))
    terms = module.objective(x, posterior, posterior.mean, logits, posterior.mean)
    expected = -log_prob(logits.double(), x.double()).flatten(1).sum(1)
    torch.testing.assert_close(terms["loss_reconstruction"].double(), expected, rtol=1e-5, atol=1e-3)
    assert terms["loss_kl"].abs().max() == 0


def test_a_mean_over_pixels_is_the_sum_over_their_number() -> None:
    x, logits = pictures(3), torch.zeros(3, 3, 28, 28)
    posterior = Posterior(torch.ones(3, 6, 1, 1), torch.zeros(3, 6, 1, 1))
    by_sum = make().objective(x, posterior, posterior.mean, logits, posterior.mean)
    by_mean = make(reconstruction_reduction="mean").objective(x, posterior, posterior.mean, logits, posterior.mean)
    torch.testing.assert_close(by_mean["loss_reconstruction"] * 3 * 28 * 28, by_sum["loss_reconstruction"])
    torch.testing.assert_close(by_mean["loss_kl"], by_sum["loss_kl"])


def test_the_wasserstein_objective_weighs_the_mmd_of_the_batch_in_place_of_the_kl() -> None:
    module, x, logits = make(divergence="mmd", beta=50.0), pictures(4), torch.zeros(4, 3, 28, 28)
    posterior = Posterior(torch.ones(4, 6, 1, 1), torch.zeros(4, 6, 1, 1))
    z, z_prior = torch.randn(4, 6, 1, 1) + 2, torch.randn(4, 6, 1, 1)
    terms = module.objective(x, posterior, z, logits, z_prior)
    torch.testing.assert_close(terms["loss"], terms["loss_reconstruction"] + 50 * mmd_imq(z, z_prior))
    torch.testing.assert_close(terms["loss_kl"], torch.full((4,), 3.0), msg="the rate is still logged")


def test_residual_blocks_start_as_the_identity_and_learn() -> None:
    torch.manual_seed(0)
    for norm in ("batch", "group", "none"):
        block, h = ResidualBlock(16, norm, "relu"), torch.randn(2, 16, 5, 5)
        torch.testing.assert_close(block(h), h)
        block(h).square().sum().backward()
        assert block.layers[-1].weight.grad.abs().sum() > 0
    plain, deep = make(), make(residual_blocks=2)
    assert deep.decode(deep.encode(pictures(2)).mean).shape == (2, 3, 28, 28)
    stages = len(plain.net["encoder"].stages)
    blocks = [m for m in deep.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 2 * 2 * stages


@pytest.mark.parametrize("warmup", [10, 0.05])
def test_beta_grows_in_our_own_steps(warmup: float) -> None:
    """Steps, or a share of the run's 200."""
    module = make(beta=4.0, beta_warmup_steps=warmup)
    module.total_steps, seen = 200, []
    for step in (0, 5, 10, 99):
        module.optimizer_steps = step
        seen.append(module.current_beta)
    assert seen == [0.0, 2.0, 4.0, 4.0]


def test_it_overfits_one_batch() -> None:
    """Eight gradients, 300 steps without a KL: at least 25 dB, where the mean picture of the batch gives 13 dB."""
    module, x = make(channels=[16, 32], latent_dim=16, beta=0.0), pictures(8)
    optimizer = module.configure_optimizers()
    for _ in range(300):
        posterior = module.encode(x)
        z = posterior.mean
        loss = module.objective(x, posterior, z, module._decode(module.net, z), z)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mse = (module.decode(module.encode(x).mean) - x).square().mean().item()
    baseline = (x.mean(0) - x).square().mean().item()
    assert -10 * math.log10(mse) > 25 > -10 * math.log10(baseline) + 10


def test_weights_are_a_function_of_the_seed_and_leave_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = make(), make()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_average_is_what_encodes_and_decodes() -> None:
    module = make(ema_decay=0.9)
    assert module.ema is not None
    z, x = torch.ones(2, *module.latent_shape), pictures(2)
    before = module.decode(z), module.encode(x).mean
    with torch.no_grad():
        for p in module.net.parameters():
            p.add_(0.1)
    torch.testing.assert_close((module.decode(z), module.encode(x).mean), before)
    module.ema.update(module.net, step=10**6)
    assert not torch.allclose(module.decode(z), before[0])
    assert not torch.allclose(module.encode(x).mean, before[1])
    optimised = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.net.parameters()}


def test_the_common_elbo_has_no_likelihood_of_its_own() -> None:
    """It is the Gaussian log likelihood at its own best sigma, minus the KL."""
    error = torch.randn(10, 48, dtype=torch.float64) * 0.3
    sigma = error.square().mean().sqrt()
    expected = Normal(0.0, sigma).log_prob(error).sum(1).mean().item() - 7.0
    assert math.isclose(gaussian_elbo(error.square().sum().item(), 70.0, 10, 48), expected, rel_tol=1e-12)
