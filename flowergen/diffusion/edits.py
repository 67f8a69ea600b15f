"""Edits of a given picture: the same samplers, started from the picture or held to a part of it.

``predict``, ``levels`` and ``noise`` are those of ``diffusion.samplers``, and x_0 is the picture, scaled as samples are.
"""

from collections.abc import Sequence
from itertools import count, pairwise

import torch
from torch import Tensor

from flowergen.diffusion.samplers.ddpm import ddpm
from flowergen.diffusion.schedule import Level
from flowergen.diffusion.steps import Noise, Predict, Steps

FIXED_POINT_ITERATIONS = 5


def last_levels(levels: Sequence[Level], strength: float) -> Sequence[Level]:
    """Return the levels of the last steps, a fraction of all.

    SDEdit (Meng et al. 2022, arXiv:2108.01073, section 3) starts at their first one, alpha x_0 + sigma eps: the higher the
    strength, the less of the picture is left there.

    Args:
        levels: from the noisiest to ``CLEAN``.
        strength: from 0, no step, to 1, all of them.
    """
    return levels[len(levels) - 1 - round(strength * (len(levels) - 1)) :]


def noised(x0: Tensor, level: Level, eps: Tensor) -> Tensor:
    """Draw x_t ~ q(x_t | x_0) = alpha x_0 + sigma eps."""
    return level.alpha * x0 + level.sigma * eps


def inpaint(
    predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise, x0: Tensor, known: Tensor, num_resamplings: int
) -> Steps:
    """Ancestral sampling in which the known part of x_0 replaces that of the sample after every step.

    RePaint (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 with jumps of one step): each step is repeated, with the noise
    that it removed added again, so that the unknown part fits the known one.

    Args:
        predict, x, levels: see ``diffusion.samplers``.
        noise: fresh noise for draw k, of which there are 3 ``num_resamplings`` a step at most.
        x0: (N, C, h, w) the given picture.
        known: (N, 1, h, w) bool, the part of it to keep.
        num_resamplings: how often each step is taken, at least 1.

    Yields:
        x after the step and x0_hat before it, (N, C, h, w) each.
    """
    draws = count()
    for now, then in pairwise(levels):
        x0_hat = x
        for remaining in reversed(range(num_resamplings if then.sigma else 1)):
            ((after, x0_hat),) = ddpm(predict, x, (now, then), lambda _: noise(next(draws)))
            after = torch.where(known, noised(x0, then, noise(next(draws))), after)
            a = now.alpha / then.alpha
            added = max(now.sigma**2 - a**2 * then.sigma**2, 0.0) ** 0.5
            x = a * after + added * noise(next(draws)) if remaining else after
        yield x, x0_hat


def invert(predict: Predict, x0: Tensor, levels: Sequence[Level]) -> Tensor:
    """Return the noise from which ``ddim`` with eta = 0 samples x_0.

    Every step of ``ddim`` is an equation for the x_t that it started from, solved by fixed-point iteration (Pan et al. 2023,
    arXiv:2309.04907, section 3.2). Where most of x_t is picture, it is solved for the noise,
    x_t = alpha_t / alpha_s (x_s - sigma_s eps_hat) + sigma_t eps_hat; otherwise for the picture,
    x_t = alpha_t x0_hat + sigma_t / sigma_s (x_s - alpha_s x0_hat).

    Args:
        predict, levels: see ``diffusion.samplers``.
        x0: (N, C, h, w) the given picture.

    Returns:
        (N, C, h, w) noise at ``levels[0]``.
    """
    after = x0
    for then, now in pairwise(reversed(levels)):
        x = after
        for _ in range(FIXED_POINT_ITERATIONS):
            x0_hat, eps_hat = predict(x, now)
            if now.alpha > now.sigma or not then.sigma:
                x = now.alpha / then.alpha * (after - then.sigma * eps_hat) + now.sigma * eps_hat
            else:
                x = now.alpha * x0_hat + now.sigma / then.sigma * (after - then.alpha * x0_hat)
        after = x
    return after
