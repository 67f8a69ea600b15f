"""The Gaussian posterior that every encoder of the project returns."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as in latent diffusion's autoencoder (Rombach et al. 2022, arXiv:2112.10752)


def bounded_logvar(logvar: Tensor) -> Tensor:
    """Clamp to [-30, 20] with a gradient of 1 everywhere (straight-through, Bengio et al. 2013, arXiv:1308.3432).

    The bound keeps exp(logvar) finite in float32. A plain clamp has no gradient beyond it, so the KL could not pull back a
    unit that has passed it.

    Args:
        logvar: any shape, any finite value.

    Returns:
        Same shape, in [-30, 20]; NaN and infinities give NaN, so that divergence is noticed.
    """
    # x - x is exactly 0, whereas x + (clamp(x) - x).detach() loses the clamped value to rounding for a large x.
    return logvar.clamp(LOGVAR_MIN, LOGVAR_MAX).detach() + (logvar - logvar.detach())


class Posterior(NamedTuple):
    """A diagonal Gaussian q(z|x) for each picture (Kingma & Welling 2014, arXiv:1312.6114, section 3).

    Attributes:
        mean: (N, C, h, w) float32.
        logvar: (N, C, h, w) float32, the natural logarithm of the variance.
    """

    mean: Tensor
    logvar: Tensor

    def __repr__(self) -> str:
        """Show shapes, not values."""
        return f"Posterior(mean: {tuple(self.mean.shape)}, logvar: {tuple(self.logvar.shape)})"

    @classmethod
    def from_moments(cls, moments: Tensor) -> Self:
        """Build the posterior from the output of an encoder's last layer, with a bounded logvar.

        Args:
            moments: (N, 2C, h, w), means and then raw log variances; may be half precision under autocast.
        """
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, bounded_logvar(logvar))

    def sample(self, eps: Tensor) -> Tensor:
        """Draw the reparameterised sample z = mu + sigma eps (arXiv:1312.6114, equation 10).

        Args:
            eps: (N, C, h, w) standard normal noise on the posterior's device.
        """
        return self.mean + torch.exp(self.logvar / 2) * eps
