"""Adversarial losses on maps of logits, and the weight of the generator's."""

import torch
import torch.nn.functional as F
from torch import Tensor

# below it the weight of a step could not be measured from the weight of the step before
WEIGHT_MIN = 1e-4


def hinge_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """1/2 [max(0, 1 - D(x)) + max(0, 1 + D(x_hat))], averaged over the map.

    Source: Lim & Ye 2017 (arXiv:1705.02894), Miyato et al. 2018 (arXiv:1802.05957, equation 16); the 1/2 is VQGAN's
    (arXiv:2012.09841, its code).

    Args:
        logits_real: (N, 1, h, w).
        logits_fake: (N, 1, h, w).

    Returns:
        (N,) float32.
    """
    return 0.5 * (F.relu(1 - logits_real.float()) + F.relu(1 + logits_fake.float())).flatten(1).mean(1)  # (N,)


def hinge_generator(logits_fake: Tensor) -> Tensor:
    """-D(x_hat), averaged over the map: the same papers, equation 17 of the second.

    Args:
        logits_fake: (N, 1, h, w).

    Returns:
        (N,) float32.
    """
    return -logits_fake.float().flatten(1).mean(1)  # (N,)


def non_saturating_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """-1/2 [log sigmoid(D(x)) + log(1 - sigmoid(D(x_hat)))], averaged over the map (Goodfellow et al. 2014, arXiv:1406.2661).

    Args:
        logits_real: (N, 1, h, w).
        logits_fake: (N, 1, h, w).

    Returns:
        (N,) float32; log 2 where nothing is told apart.
    """
    return 0.5 * (F.softplus(-logits_real.float()) + F.softplus(logits_fake.float())).flatten(1).mean(1)  # (N,)


def non_saturating_generator(logits_fake: Tensor) -> Tensor:
    """-log sigmoid(D(x_hat)), averaged over the map: strong gradients where the discriminator wins (the same paper, section 3).

    Args:
        logits_fake: (N, 1, h, w).

    Returns:
        (N,) float32.
    """
    return F.softplus(-logits_fake.float()).flatten(1).mean(1)  # (N,)


def ramp(step: int, start_step: int, ramp_steps: int) -> float:
    """0 before ``start_step``, then linearly up to 1 within ``ramp_steps``.

    Args:
        step: from 0.
        start_step: the first step with a value above 0.
        ramp_steps: 0 for none.

    >>> [ramp(step, 2, 4) for step in range(7)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if step < start_step:
        return 0.0
    return min(1.0, (step - start_step + 1) / max(1, ramp_steps))


def adaptive_weight(grad_nll: Tensor, grad_adversarial: Tensor, previous: Tensor, maximum: float) -> Tensor:
    """lambda = ||grad_L nll|| / ||grad_L adversarial||: both losses then pull equally hard at the last layer L.

    Source: VQGAN (Esser et al. 2021, arXiv:2012.09841, equation 7).

    Args:
        grad_nll: gradient of reconstruction and perceptual loss by the generator's last layer.
        grad_adversarial: of its adversarial loss, the same shape.
        previous: () the value that stays where one of the two is not finite or the second is 0.
        maximum: the cap; that paper's code has 10,000.

    Returns:
        () float32, from 1e-4 to ``maximum``.
    """
    norm_nll, norm_adversarial = grad_nll.float().norm(), grad_adversarial.float().norm()
    weight = norm_nll / norm_adversarial
    return torch.where(weight.isfinite() & norm_adversarial.isfinite(), weight, previous).clamp(WEIGHT_MIN, maximum)
