"""First-order steps along a flow."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowergen.diffusion.schedule import Level
from flowergen.diffusion.steps import Noise, Predict, Steps


def euler(predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise) -> Steps:
    """x <- x + (s' - s) u, u = eps_hat - x0_hat the straight path's velocity at s = sigma (arXiv:2209.03003, section 2)."""
    del noise
    for now, then in pairwise(levels):
        x0_hat, eps_hat = predict(x, now)
        x = x + (then.sigma - now.sigma) * (eps_hat - x0_hat)
        yield x, x0_hat
