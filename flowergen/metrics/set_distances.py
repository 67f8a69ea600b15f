"""Metrics of sets of pictures, given their features: FID, KID, Inception score, precision and recall."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from flowergen.errors import UserError
from flowergen.metrics.pairwise import as_float32, centre_of, row_blocks, squared_distances


class Gaussian(NamedTuple):
    """Mean and covariance of a set."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64


def gaussian(features: np.ndarray) -> Gaussian:
    """Fit a Gaussian: the mean and the unbiased covariance of a set.

    Two passes in float64, the second over deviations from the mean, so a large mean costs no precision.

    Args:
        features: (N, D) float32, N >= 2, possibly a memory map larger than memory.

    Raises:
        UserError: fewer than two pictures.
    """
    num, dim = _require_two_rows(features).shape
    mean = np.zeros(dim)
    for rows in row_blocks(num, dim):
        mean += features[rows].sum(0, dtype=np.float64) / num
    scatter = np.zeros((dim, dim))
    for rows in row_blocks(num, dim):
        deviation = features[rows] - mean  # (B, D) float64
        scatter += deviation.T @ deviation
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(scatter / (num - 1)))


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """Compute the squared Wasserstein-2 distance between two Gaussians, which is FID for Inception features.

    |mu_p - mu_q|^2 + tr(S_p) + tr(S_q) - 2 tr (S_p S_q)^(1/2): Dowson & Landau 1982 (10.1016/0047-259X(82)90077-X), Heusel et
    al. 2017 (arXiv:1706.08500, equation 6). With S = L L^T the last trace is the sum of the singular values of G = L_p^T L_q:
    S_p S_q has the eigenvalues of G G^T, which is symmetric. L has rank(S) columns, which avoids summing square roots of
    rounded zeros if there are fewer pictures than dimensions.

    Returns:
        The distance, 0 or more.
    """
    product = _factor(p.covariance).T @ _factor(q.covariance)  # (K_p, K_q)
    gram = product @ product.T if len(product) <= product.shape[1] else product.T @ product
    trace = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * trace
    return max(0.0, distance.item())


def _factor(covariance: Tensor) -> Tensor:
    """Return L (D, K) with L L^T the covariance and K its rank, by pivoted Cholesky, ten times as fast as eigenvectors."""
    triangle, pivots, rank, _ = dpstrf(covariance.numpy(), lower=1)
    factor = np.empty((len(triangle), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    return torch.from_numpy(factor)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3: KID for Inception features.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4. All pairs are used: the usual mean over random subsets estimates
    the same quantity with more noise. In blocks and in float64, because for similar sets the three means agree to four digits
    or more.

    Args:
        x: (N, D) float32, N >= 2.
        y: (M, D) float32, M >= 2.

    Returns:
        The distance; zero in expectation if both sets have the same distribution, so sometimes slightly negative.

    Raises:
        UserError: fewer than two pictures in a set.
    """
    x, y = _require_two_rows(x), _require_two_rows(y)
    return _mean_within(x) + _mean_within(y) - 2 * _mean_between(x, y)


def _mean_within(x: np.ndarray) -> float:
    """Return the mean kernel over pairs of different rows."""
    num, dim = x.shape
    total = 0.0
    for rows in row_blocks(num, dim):
        a = _as_float64(x[rows])
        for columns in row_blocks(rows.start, dim):
            total += 2 * _kernel(a, _as_float64(x[columns])).sum().item()
        kernel = _kernel(a, a)
        total += (kernel.sum() - kernel.diagonal().sum()).item()
    return total / (num * (num - 1))


def _mean_between(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for rows in row_blocks(*x.shape):
        a = _as_float64(x[rows])
        for columns in row_blocks(*y.shape):
            total += _kernel(a, _as_float64(y[columns])).sum().item()
    return total / (len(x) * len(y))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    root = (a @ b.T).div_(a.shape[1]).add_(1)  # (N, M)
    return root * root * root  # pow is ten times as slow


def inception_score(logits: np.ndarray) -> float:
    """Compute exp of the mean KL(p(y|x) || p(y)), the mutual information of picture and class: high if clear and diverse.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 4. Computed over the whole set, because the mean over ten splits, as
    in their code, depends on their size (Barratt & Sharma 2018, arXiv:1801.01973, section 3.2). The KL is H(p(y)) - H(p(y|x)).

    Args:
        logits: (N, K) float32.

    Returns:
        The score, 1 to K.
    """
    num, num_classes = logits.shape
    marginal, entropy = torch.zeros(num_classes, dtype=torch.float64), 0.0
    for rows in row_blocks(num, num_classes):
        p = _as_float64(logits[rows]).softmax(1)  # (B, K)
        marginal += p.sum(0) / num
        entropy += torch.special.entr(p).sum().item() / num
    return (torch.special.entr(marginal).sum() - entropy).exp().item()


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Compute the fraction of fake pictures in the manifold of the real ones (precision), and the reverse (recall).

    A set's manifold is the union of closed balls around its members, with the distance to the k-th nearest other member as
    radius. Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2; k as in their code. Copies count as separate
    members; distances that float32 cannot distinguish from 0 are set to 0, so a copy of a member is always inside.

    Args:
        real: (N, D) float32, N > k.
        fake: (M, D) float32, M > k.
        k: number of neighbours, 1 or more.

    Returns:
        Precision and recall, 0 to 1.

    Raises:
        UserError: a set has no k-th nearest other member.
    """
    if min(len(real), len(fake)) <= k:
        raise UserError(
            f"precision and recall with k = {k} need {k + 1} pictures or more, real and fake, not {len(real)} and {len(fake)}"
        )
    centre = centre_of(real)
    return _share_within(fake, real, k, centre), _share_within(real, fake, k, centre)


def _share_within(points: np.ndarray, members: np.ndarray, k: int, centre: Tensor) -> float:
    """Return the fraction of points in the manifold of the members."""
    within = torch.zeros(len(points), dtype=torch.bool)
    for rows in row_blocks(*members.shape):
        ball = as_float32(members[rows]).sub_(centre)
        nearest = ball.new_empty(len(ball), 0)
        for columns in row_blocks(*members.shape):
            nearest = torch.cat((nearest, _squared(ball, as_float32(members[columns]).sub_(centre))), 1)
            nearest = nearest.topk(min(k + 1, nearest.shape[1]), largest=False).values  # including the member itself
        radius = nearest.amax(1, keepdim=True)  # (B, 1), squared
        for columns in row_blocks(*points.shape):
            within[columns] |= (_squared(ball, as_float32(points[columns]).sub_(centre)) <= radius).any(0)
    return within.double().mean().item()


def _squared(x: Tensor, t: Tensor) -> Tensor:
    squared, rounding = squared_distances(x, t)
    return squared.masked_fill_(squared <= rounding, 0)


def _as_float64(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows.astype(np.float64))


def _require_two_rows(features: np.ndarray) -> np.ndarray:
    if len(features) < 2:
        raise UserError(f"{len(features)} pictures in a set: distances between sets need 2 or more")
    return features
