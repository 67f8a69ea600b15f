"""Denoising diffusion implicit models."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowergen.diffusion.schedule import Level, posterior_variance
from flowergen.diffusion.steps import Noise, Predict, Steps


def ddim(predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 0.0) -> Steps:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c eps, c = eta times the posterior's standard deviation.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16. eta = 0 is deterministic, and on the straight path of flow
    matching the same as ``euler``; eta = 1 is ancestral sampling.
    """
    for step, (now, then) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = predict(x, now)
        variance = eta**2 * posterior_variance(now, then) if eta and then.sigma else 0.0
        x = then.alpha * x0_hat + max(then.sigma**2 - variance, 0.0) ** 0.5 * eps_hat
        if variance:
            x = x + variance**0.5 * noise(step)
        yield x, x0_hat
