"""The regularising half of the ELBO."""

import torch
from torch import Tensor


def kl_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag sigma^2) || N(0, I)) = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2), per sample.

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B. Computed in float32 whatever comes in; expm1 keeps the
    digits that exp(logvar) - 1 loses where the posterior is close to the prior.

    Args:
        mean: (N, ...) mu.
        logvar: (N, ...) log sigma^2.

    Returns:
        (N,) float32 in nats, summed over the latent dimensions.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar).flatten(1).sum(1)  # (N,)
