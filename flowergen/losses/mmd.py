"""How far the aggregate posterior is from the prior, without a density."""

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel's width, Tolstikhin et al. 2018, appendix of arXiv:1711.01558


def mmd_imq(z: Tensor, z_prior: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two sets, with inverse multiquadric kernels.

    MMD^2 = E k(z, z') + E k(w, w') - 2 E k(z, w), k(a, b) = sum_s C_s / (C_s + ||a - b||^2) with C_s = 2 D s: the unbiased
    estimate of Gretton et al. 2012 (JMLR 13, equation 3), the kernel of the Wasserstein autoencoder (Tolstikhin et al.
    2018, arXiv:1711.01558, section 4) for the prior N(0, I). Computed in float32 whatever comes in.

    Args:
        z: (N, ...) latents.
        z_prior: (M, ...) draws from N(0, I).

    Returns:
        () float32. Zero in expectation where both come from one distribution, so slightly negative at times, and never above
        14; a set of one has no pair and counts as spread out without end.
    """
    z, z_prior = z.float().flatten(1), z_prior.float().flatten(1)  # (N, D), (M, D)
    return _mean_off_diagonal(_kernel(z, z)) + _mean_off_diagonal(_kernel(z_prior, z_prior)) - 2 * _kernel(z, z_prior).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    # not torch.cdist, whose gradient at distance 0 is that of a square root
    squared = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)  # (N, M)
    widths = 2 * a.shape[1] * torch.tensor(SCALES, device=a.device)  # (S,)
    return (widths[:, None, None] / (widths[:, None, None] + squared)).sum(0)  # (N, M)


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    num = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / max(1, num * (num - 1))  # ()
