"""Ancestral sampling: the reverse Markov chain."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowergen.diffusion.schedule import Level, posterior_variance
from flowergen.diffusion.steps import Noise, Predict, Steps


def ddpm(predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise) -> Steps:
    """x_s ~ q(x_s | x_t, x0_hat), with its own variance (Ho et al. 2020, arXiv:2006.11239, equations 6 and 7).

    Any levels of any path, not only neighbours: with a = alpha_t / alpha_s and b = sigma_t^2 - a^2 sigma_s^2, the mean is
    (alpha_s b x0_hat + a sigma_s^2 x_t) / sigma_t^2.
    """
    for step, (now, then) in enumerate(pairwise(levels)):
        x0_hat, _ = predict(x, now)
        a = now.alpha / then.alpha
        mean = (then.alpha * (now.sigma**2 - a**2 * then.sigma**2) * x0_hat + a * then.sigma**2 * x) / now.sigma**2
        x = mean + posterior_variance(now, then) ** 0.5 * noise(step) if then.sigma else mean
        yield x, x0_hat
