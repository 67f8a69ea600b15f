"""Posterior collapse: the information in each latent dimension, and how the aggregate posterior compares with the prior."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowergen.metrics.active_units import THRESHOLD
from flowergen.nn.latent_space import nats_per_unit
from flowergen.nn.posterior import Posterior
from flowergen.viz.latent_map import principal_plane

SILENT_NATS = 0.01  # KL below which a dimension carries almost no information
MANY_SHARE = 0.25  # share of the dimensions that counts as many
NOTHING_NATS = 0.1  # information about the picture's index; narrows the candidates by a factor of only e^0.1 = 1.1
VARIANCE_FACTOR = 2.0  # factor by which a variance is larger or smaller than the prior's
FEW_PICTURES = 50  # at this number, variance estimates have a relative error of about a fifth
DIMS_PER_CHUNK = 2048  # dimensions held in memory in float64 at a time


@dataclass(frozen=True)
class Collapse:
    """Collapse statistics of N pictures; q(z) = 1/N sum_n q(z|x_n) is their aggregate posterior.

    For each dimension, kl = information_bound + aggregate_kl (Hoffman & Johnson 2016, "ELBO surgery", section 2, with q(z)
    replaced by the Gaussian of the same mean and variance).

    Attributes:
        num_pictures: N.
        kl: (C, h, w) KL(q(z_u|x) || N(0, 1)), averaged over the pictures, in nats.
        mean: (C, h, w) mean of q(z).
        variance: (C, h, w) variance of q(z): var_x mu + E_x sigma^2, the law of total variance.
        active: (C, h, w) bool, var_x mu > 0.01 (Burda et al. 2016, arXiv:1509.00519, section 5.2).
        information_bound: (C, h, w) 1/2 (log variance - E_x log sigma^2): upper bound in nats on the information of z_u about
            the picture, since the Gaussian has the largest entropy of all densities with that variance.
        aggregate_kl: (C, h, w) KL(N(mean, variance) || N(0, 1)) in nats.
        largest_variance: variance of q(z) along the direction in which the posterior means vary most.
        information: about which of ``num_compared`` pictures a posterior draw came from, in nats; see ``index_information``.
        num_compared: number of pictures compared; at most e^information of them can be distinguished.
    """

    num_pictures: int
    kl: Tensor
    mean: Tensor
    variance: Tensor
    active: Tensor
    information_bound: Tensor
    aggregate_kl: Tensor
    largest_variance: float
    information: float
    num_compared: int

    @property
    def num_dims(self) -> int:
        """Number of latent dimensions, C h w."""
        return self.kl.numel()

    @property
    def largest_of_prior(self) -> float:
        """Approximate upper limit of the variance along any direction among N draws from N(0, I).

        (1 + sqrt(D / N))^2, Marchenko & Pastur 1967, 10.1070/SM1967v001n04ABEH001994; at the edge, Johnstone 2001,
        10.1214/aos/1009210544.
        """
        return (1 + math.sqrt(self.num_dims / self.num_pictures)) ** 2

    @property
    def num_silent(self) -> int:
        """Number of dimensions with a KL below 0.01 nats."""
        return int((self.kl < SILENT_NATS).sum())


def measure_collapse(posterior: Posterior, compared: Tensor, eps: Tensor) -> Collapse:
    """Compute ``Collapse``, in float64 except for the KL of each picture.

    Args:
        posterior: posteriors of N pictures, (N, C, h, w), finite.
        compared: (M,) int64 indices of the pictures used to estimate the information.
        eps: (M, C, h, w) standard normal noise.
    """
    mean, logvar = posterior
    num, shape = len(mean), mean.shape[1:]
    center = mean.mean(0, dtype=torch.float64)
    of_means, of_noise, log_noise = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for mu, lv in zip(mean.split(256), logvar.split(256), strict=True):  # in chunks, as float64 takes twice the memory
        of_means += (mu.double() - center).square().sum(0) / num
        of_noise += lv.double().exp().sum(0) / num
        log_noise += lv.double().sum(0) / num
    variance = of_means + of_noise
    flat = mean.flatten(1)  # (N, D)
    _, (direction, _) = principal_plane(flat) if num > 1 else (None, torch.zeros(2, flat.shape[1]))
    along = (flat @ direction).double().var(correction=0) + (direction.double().square() * of_noise.flatten()).sum()
    return Collapse(
        num_pictures=num,
        kl=nats_per_unit(posterior).double().view(shape),
        mean=center,
        variance=variance,
        active=of_means > THRESHOLD,
        information_bound=(variance.log() - log_noise) / 2,
        aggregate_kl=(center.square() + variance - 1 - variance.log()) / 2,
        largest_variance=along.item(),
        information=index_information(Posterior(mean[compared], logvar[compared]), eps),
        num_compared=len(compared),
    )


def index_information(posterior: Posterior, eps: Tensor) -> float:
    """Estimate I(n; z) = E_n E_q(z|x_n) [log q(z|x_n) - log 1/N sum_m q(z|x_m)] from one draw per picture.

    Source: Hoffman & Johnson 2016, "ELBO surgery", equation 6. The value is at most log N: if all of a few pictures can be
    distinguished, it does not show how much more information a latent could hold.

    Args:
        posterior: posteriors of N pictures, (N, C, h, w).
        eps: (N, C, h, w) standard normal noise.

    Returns:
        The estimate in nats; it may be slightly negative for a collapsed posterior.
    """
    num = len(eps)
    log_ratio = torch.zeros(num, num, dtype=torch.float64)  # [n, m]: log q(z_n|x_m) - log q(z_n|x_n)
    moments = (part.flatten(1).split(DIMS_PER_CHUNK, dim=1) for part in (*posterior, eps))
    for mu32, logvar32, eps32 in zip(*moments, strict=True):
        logvar, noise = logvar32.double(), eps32.double()
        mu = mu32.double() - mu32.mean(0, dtype=torch.float64)  # centred to reduce cancellation in the differences below
        z, precision = mu + (logvar / 2).exp() * noise, (-logvar).exp()  # (N, D) each
        square = z.square() @ precision.T - 2 * z @ (mu * precision).T + (mu.square() * precision).sum(1)  # (N, N)
        log_ratio += (noise.square() + logvar).sum(1, keepdim=True) / 2 - (square + logvar.sum(1)) / 2
    log_ratio.fill_diagonal_(0)
    return math.log(num) - log_ratio.logsumexp(1).mean().item()


def verdict(collapse: Collapse, objective: Mapping[str, Any], diffused: bool = False) -> list[str]:
    """Explain the figures and what to change, one sentence per line.

    Args:
        collapse: the figures.
        objective: the model's config; ``beta``, ``beta_warmup_steps`` and ``divergence`` are used if present.
        diffused: whether the run is a diffusion model on these latents.
    """
    num, dims, silent = collapse.num_pictures, collapse.num_dims, collapse.num_silent
    if num == 1:
        return ["One picture says nothing about how latents differ between pictures: use a split with more."]
    information = (
        f"a latent tells {max(0.0, collapse.information):.2f} of {math.log(collapse.num_compared):.2f} nats about which of "
        f"{collapse.num_compared:,} pictures it belongs to"
    )
    unused = f"{silent:,} of {dims:,} dimensions carry less than {SILENT_NATS} nats"
    if collapse.information < NOTHING_NATS:
        lines = [f"Posterior collapse: {information}, and {unused}: {_less_pressure(objective)}."]
    elif silent >= MANY_SHARE * dims:
        smaller = "; if reconstructions are good enough, a smaller latent will do" if silent < dims else ""
        lines = [
            f"Partial collapse: {unused}: {_less_pressure(objective)}{smaller}.",
            f"The others are in use: {information}.",
        ]
    else:
        lines = [f"No collapse: {unused}, and {information}."]
    lines.append(_aggregate(collapse, objective, diffused))
    if objective.get("divergence") == "mmd":
        lines.append("The model's divergence is the MMD, which does not require a small KL: a large one is not a problem.")
    if num < FEW_PICTURES:
        lines.append(f"There are only {num} pictures: means and variances are rough estimates.")
    return lines


def _less_pressure(objective: Mapping[str, Any]) -> str:
    beta, warmup = objective.get("beta"), objective.get("beta_warmup_steps")
    if beta == 0:
        return "nothing pulled them to the prior (model.beta=0), so train longer, or with a higher learning rate"
    if beta is None:
        return "give the divergence from the prior a smaller weight, or let it grow more slowly"
    longer = "" if warmup is None else f" or warm it up longer (model.beta_warmup_steps={warmup})"
    return f"lower model.beta={beta:g}{longer}"


def _aggregate(collapse: Collapse, objective: Mapping[str, Any], diffused: bool) -> str:
    second_moment, dims = collapse.mean.square() + collapse.variance, collapse.num_dims
    wide, narrow = (int(off.sum()) for off in (second_moment > VARIANCE_FACTOR, second_moment < 1 / VARIANCE_FACTOR))
    low, median, high = torch.quantile(second_moment.flatten().sqrt(), torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    size = f"root mean square of a dimension {median:.2f}, mostly from {low:.2f} to {high:.2f}, where N(0, 1) has 1"
    edge, mean_variance = collapse.largest_of_prior, collapse.variance.mean().item()
    if max(wide, narrow) >= MANY_SHARE * dims:
        kinds = " and ".join(f"{word} in {n:,}" for word, n in (("wider", wide), ("narrower", narrow)) if n)
        off = f"The latents as a whole are much {kinds} of {dims:,} dimensions than the prior ({size})"
    elif collapse.largest_variance > VARIANCE_FACTOR * edge * mean_variance:
        off = (
            f"Dimension by dimension the latents lie about where N(0, I) does ({size}), but not together: their variance along "
            f"one direction is {collapse.largest_variance:,.1f}, where as many draws from N(0, I) have {edge:,.1f} at most"
        )
    else:
        return f"The latents as a whole lie about where N(0, I) does ({size})."
    if diffused:
        return f"{off}. The diffusion of this run learns where they lie, so this does no harm."
    raise_beta = f"raise model.beta={objective['beta']:g}" if "beta" in objective else "give the divergence a larger weight"
    return (
        f"{off}. So samples from N(0, I) lie off them: sample from the mixture (flowergen.sample, source=mixture), or train "
        f"diffusion on them (model=latent_ddpm autoencoder=RUN), or {raise_beta}."
    )
