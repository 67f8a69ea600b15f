"""Second-order steps along a flow."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowergen.diffusion.schedule import Level
from flowergen.diffusion.steps import Noise, Predict, Steps


def heun(predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise) -> Steps:
    """Euler's step, then again with the mean of the velocities at its two ends: two answers of the network a step.

    Source: the trapezoidal rule as in Karras et al. 2022, arXiv:2206.00364, algorithm 1. The last step is Euler's, as there.
    """
    del noise
    for now, then in pairwise(levels):
        x0_hat, eps_hat = predict(x, now)
        u = eps_hat - x0_hat
        ds = then.sigma - now.sigma
        ahead = x + ds * u
        if then.sigma:
            x0_there, eps_there = predict(ahead, then)
            ahead = x + ds * (u + eps_there - x0_there) / 2
        x = ahead
        yield x, x0_hat
