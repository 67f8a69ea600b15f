"""Reconstruction losses, one value per sample, summed over pixels and channels, and the ELBO that compares recipes.

All of them compute in float32 whatever comes in: a sum over 12,288 half-precision terms has no digits left.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The pictures are 8-bit: rounding to multiples of 1/255 alone leaves this standard deviation (a uniform distribution's
# width / sqrt(12)). A smaller sigma would reward noise, and a perfect reconstruction would have an infinite likelihood.
SIGMA_MIN = 1 / (255 * math.sqrt(12))


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """SSE = sum (x_hat - x)^2.

    Args:
        x_hat: (N, ...) reconstruction.
        x: (N, ...) picture.

    Returns:
        (N,) float32.
    """
    return (x_hat.float() - x.float()).square().flatten(1).sum(1)  # (N,)


def absolute_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Sum |x_hat - x|: up to scale and constant the negative log likelihood of a Laplace distribution.

    Args:
        x_hat: (N, ...) reconstruction.
        x: (N, ...) picture.

    Returns:
        (N,) float32.
    """
    return (x_hat.float() - x.float()).abs().flatten(1).sum(1)  # (N,)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Binary cross-entropy -sum [x log p + (1 - x) log(1 - p)], p = sigmoid(logits).

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix C.1, equation 11. For x strictly between 0 and 1 it is no
    likelihood and its minimum is not 0.

    Args:
        logits: (N, ...) before the sigmoid.
        x: (N, ...) picture in [0, 1].

    Returns:
        (N,) float32 in nats.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), x.float(), reduction="none").flatten(1).sum(1)  # (N,)


def gaussian(x_hat: Tensor, x: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(x; x_hat, sigma^2 I) = D/2 log(2 pi sigma^2) + SSE / (2 sigma^2), with D pixel values a picture.

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix C.2; one sigma for all pixels as in sigma-VAE (Rybkin et
    al. 2021, arXiv:2006.13202, section 3).

    Args:
        x_hat: (N, ...) reconstruction, the mean.
        x: (N, ...) picture.
        log_sigma: () logarithm of the standard deviation, in the pixels' unit.

    Returns:
        (N,) float32 in nats.
    """
    log_sigma = log_sigma.float()
    num_values = x[0].numel()
    return num_values * (log_sigma + 0.5 * math.log(2 * math.pi)) + 0.5 * squared_error(x_hat, x) * torch.exp(
        -2 * log_sigma
    )  # (N,)


def optimal_log_sigma(x_hat: Tensor, x: Tensor) -> Tensor:
    """Logarithm of the shared sigma that maximises the batch's likelihood: sigma*^2 = mean (x_hat - x)^2.

    Source: sigma-VAE (Rybkin et al. 2021, arXiv:2006.13202, section 3.2). No gradient passes through it: at the optimum
    the likelihood's derivative by sigma is 0, so that the gradient of `gaussian` summed over this batch is exact
    without (envelope theorem). Not below log `SIGMA_MIN`.

    Args:
        x_hat: (N, ...) reconstruction.
        x: (N, ...) picture, in [0, 1] for the floor to mean what it says.

    Returns:
        () float32, detached.
    """
    return 0.5 * squared_error(x_hat.detach(), x).sum().div(x.numel()).clamp_min(SIGMA_MIN**2).log()  # ()


def gaussian_elbo(sse_sum: float, kl_sum: float, num_images: int, num_pixels: int) -> float:
    """The common quantity by which recipes with different likelihoods are compared: a Gaussian ELBO, beta 1.

    sigma*^2 = SSE / (n D) is shared by the whole set; then the ELBO is -D/2 (1 + log 2 pi sigma*^2) - KL. With sigma at
    the floor `SIGMA_MIN` the 1 becomes SSE / (n D sigma^2). Source: as `optimal_log_sigma`, equation 1 for the ELBO.

    Args:
        sse_sum: squared error summed over the set, on [0, 1] pixels.
        kl_sum: KL summed over the set, in nats.
        num_images: n.
        num_pixels: D, the values of a picture, 3 * S * S.

    Returns:
        Nats per image, in float64.
    """
    mse = sse_sum / (num_images * num_pixels)
    variance = max(mse, SIGMA_MIN**2)
    return -num_pixels / 2 * (mse / variance + math.log(2 * math.pi * variance)) - kl_sum / num_images
