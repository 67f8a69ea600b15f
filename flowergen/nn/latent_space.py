"""Interpolation, traversal and KL of latents."""

import torch
from torch import Tensor

from flowergen.losses.kl import kl_standard_normal
from flowergen.nn.posterior import Posterior

PARALLEL = 1e-4  # radians below which the great circle is a straight line in float32


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate spherically: [sin((1 - t) theta) a + sin(t theta) b] / sin theta, with theta the angle between a and b.

    Source: Shoemake 1985 (10.1145/325165.325242), for latents White 2016, arXiv:1609.04468, section 2.1: a straight line
    between two samples of N(0, I) passes too close to the origin. The interpolation is linear if the latents are parallel,
    opposite (no great circle between them is the shortest) or zero (no direction).

    Args:
        a, b: (C, h, w) at t = 0 and at t = 1.
        t: (T,) in [0, 1].

    Returns:
        (T, C, h, w).
    """
    t = t.to(a).view(-1, *[1] * a.dim())
    if not (a.any() and b.any()):
        return (1 - t) * a + t * b
    u, v = a / a.norm(), b / b.norm()
    theta = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # arccos loses its precision near 0 and pi
    if theta < PARALLEL or theta > torch.pi - PARALLEL:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)


def nats_per_unit(posterior: Posterior) -> Tensor:
    """Compute KL(q(z_u|x) || N(0, 1)) of every latent dimension u: the information it carries about the pictures.

    Returns:
        (C h w,) float32, averaged over the pictures.
    """
    mean, logvar = (moment.flatten(1) for moment in posterior)  # (N, C h w)
    return kl_standard_normal(mean.reshape(-1, 1), logvar.reshape(-1, 1)).view_as(mean).mean(0)


def traverse(z: Tensor, unit: int, values: Tensor) -> Tensor:
    """Return copies of a latent in which one dimension takes the given values (Higgins et al. 2017, beta-VAE, figure 1).

    Args:
        z: (C, h, w).
        unit: index into its flattened dimensions.
        values: (T,).

    Returns:
        (T, C, h, w).
    """
    walked = z.flatten().repeat(len(values), 1)  # (T, C h w)
    walked[:, unit] = values.to(walked)
    return walked.view(-1, *z.shape)
