"""A second-order solver that remembers its last answer."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowergen.diffusion.schedule import Level
from flowergen.diffusion.steps import Noise, Predict, Steps


def dpmpp_2m(predict: Predict, x: Tensor, levels: Sequence[Level], noise: Noise) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), one answer of the network a step.

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t, r = (last h) / h:
    D = x0_hat + (x0_hat - the last x0_hat) / (2 r), x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D.
    The first step has no last answer, and the one to the clean end, where h is infinite, is of first order as well.
    """
    del noise
    before: tuple[Level, Tensor] | None = None
    for now, then in pairwise(levels):
        x0_hat, _ = predict(x, now)
        h = then.log_snr - now.log_snr
        d = x0_hat
        if before is not None and then.sigma:
            r = (now.log_snr - before[0].log_snr) / h
            d = x0_hat + (x0_hat - before[1]) / (2 * r)
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * d
        before = now, x0_hat
        yield x, x0_hat
