"""What the network predicts, how the loss is weighed, and how its answer is read."""

from typing import Literal

import torch
from torch import Tensor

Objective = Literal["eps", "v", "x0", "flow"]


def target(objective: Objective, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should answer to x_t = alpha x_0 + sigma eps.

    eps (arXiv:2006.11239, equation 14); v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4 and
    appendix D); x_0; the velocity eps - x_0 of the straight path (arXiv:2209.03003, equation 1, time reversed).

    Args:
        objective: which of them.
        x0, eps: (N, C, h, w).
        alpha, sigma: (N, 1, 1, 1).

    Returns:
        (N, C, h, w).
    """
    if objective == "eps":
        return eps
    if objective == "x0":
        return x0
    return eps - x0 if objective == "flow" else alpha * eps - sigma * x0


def predictions(objective: Objective, output: Tensor, x_t: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """x_0 and eps as the network's answer implies them, so that x_t = alpha x_0 + sigma eps.

    Args:
        objective: what the answer is.
        output, x_t: (N, C, h, w).
        alpha, sigma: of all of x_t; sigma above 0, and alpha for eps.

    Returns:
        x0_hat and eps_hat, each (N, C, h, w).
    """
    if objective == "eps":
        return (x_t - sigma * output) / alpha, output
    if objective == "x0":
        return output, (x_t - alpha * output) / sigma
    if objective == "v":
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output
    return x_t - sigma * output, x_t + alpha * output  # flow: alpha + sigma = 1


def min_snr_weight(objective: Objective, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) of an x_0-loss, in terms of the objective's own loss, SNR = alpha^2 / sigma^2.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4: min(SNR, gamma) for x0, / SNR for eps, / (SNR + 1) for v.

    Args:
        objective: eps, v or x0.
        alpha: (N,).
        sigma: (N,), above 0.
        gamma: 5 in the paper.

    Returns:
        (N,).
    """
    snr = (alpha / sigma).square()
    clipped = snr.clamp(max=gamma)
    if objective == "x0":
        return clipped
    # min(SNR, gamma) / SNR = min(1, gamma / SNR), and no 0 / 0 where there is no signal
    return clipped / (snr + 1) if objective == "v" else torch.clamp(gamma / snr, max=1.0)
