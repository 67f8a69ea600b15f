"""A density model of a data set's latents, which samples far better than N(0, I)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from flowergen.randomness import generator, normal_per_sample

MAX_COMPONENTS = 32  # Gaussians in the mixture
PICTURES_PER_COMPONENT = 64
MAX_PRINCIPAL_DIRECTIONS = 512  # principal directions kept
MAX_CORRELATED_DIRECTIONS = 64  # leading directions modelled by the mixture; the others are independent of each other


@dataclass(frozen=True)
class LatentPrior:
    """z = mean + basis^T (std * u), u = [a draw from a Gaussian mixture in its first K directions; N(0, 1) in the others].

    The second stage of a two-stage VAE (Dai & Wipf 2019, arXiv:1903.05789, section 4), with the mixture of Ghosh et al. 2020
    (arXiv:1903.12436, section 4) in the principal directions of the latents.

    Attributes:
        mean: (D,) mean of the latents.
        basis: (R, D) principal directions, orthonormal rows.
        std: (R,) standard deviations of the latents along them.
        weights: (J,) weights of the mixture's Gaussians.
        means: (J, K) their means.
        cholesky: (J, K, K) Cholesky factors of their covariances.
        class_means: (Kc, K) means of one Gaussian per class; NaN if the class has no training picture.
        class_cholesky: (Kc, K, K) Cholesky factors of their covariances.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor
    weights: Tensor
    means: Tensor
    cholesky: Tensor
    class_means: Tensor
    class_cholesky: Tensor

    def sample(self, index: Sequence[int], seed: int, label: Tensor | None = None) -> Tensor:
        """Draw (N, D) latents of these numbers, from the mixture or, given labels (N,), from the Gaussians of their classes.

        Sample i depends only on (seed, i) and its class.
        """
        u = normal_per_sample(index, (len(self.std),), seed=seed, purpose="latent prior")  # (N, R)
        if label is None:
            edges = self.weights.cumsum(0)[:-1].contiguous()
            draws = torch.tensor([generator(seed, i, "mixture component").random() for i in index])
            which, means, cholesky = torch.searchsorted(edges, draws.to(edges)), self.means, self.cholesky
        else:
            which, means, cholesky = label, self.class_means, self.class_cholesky
        k = means.shape[1]
        u[:, :k] = means[which] + (cholesky[which] @ u[:, :k, None])[..., 0]
        return self.mean + (self.std * u) @ self.basis

    def fits(self, dims: int) -> bool:
        """Return whether all shapes and dtypes match a prior of latents with this many dimensions."""
        r, (j, k), c = len(self.std), self.means.shape, len(self.class_means)
        shapes = [(dims,), (r, dims), (r,), (j,), (j, k), (j, k, k), (c, k), (c, k, k)]
        tensors = self.tensors().values()
        return k <= r and j > 0 and [t.shape for t in tensors] == shapes and all(t.dtype == torch.float32 for t in tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f"prior.{field.name}": getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "LatentPrior | None":
        """Build the prior from the result of ``tensors``; None if it contains no prior."""
        names = [field.name for field in fields(cls)]
        if f"prior.{names[0]}" not in tensors:
            return None
        return cls(**{name: tensors[f"prior.{name}"] for name in names})


def fit_latent_prior(z: Tensor, label: Tensor, num_classes: int) -> LatentPrior:
    """Fit principal directions by an SVD and the mixture by expectation-maximisation, both with scikit-learn and seed 0.

    The covariance of each class is shrunk towards the within-class covariance, which has the weight of K pictures (regularised
    discriminant analysis, Friedman 1989, 10.1080/01621459.1989.10478752, equation 16), as a class often has fewer pictures than
    directions.

    Args:
        z: (N, D) draws z ~ q(z|x) for training pictures, N >= 2.
        label: (N,) int64, -1 if unlabelled.
        num_classes: Kc.
    """
    from sklearn.decomposition import PCA  # takes a second to import, and only the end of training needs it
    from sklearn.mixture import GaussianMixture

    num, dims = z.shape
    solver = "full" if num <= 2 * MAX_PRINCIPAL_DIRECTIONS else "randomized"  # the exact solver is faster for so few pictures
    pca = PCA(min(MAX_PRINCIPAL_DIRECTIONS, dims, num - 1), svd_solver=solver, random_state=0)
    coordinates = pca.fit_transform(z.numpy()).astype(np.float64)  # (N, R)
    std = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))  # (R,)
    k = max(1, min(MAX_CORRELATED_DIRECTIONS, len(std), num // 4))
    u = coordinates[:, :k] / std[:k]  # (N, K), variance 1 along each direction
    components = max(1, min(MAX_COMPONENTS, num // PICTURES_PER_COMPONENT))
    mixture = GaussianMixture(components, reg_covar=1e-2, random_state=0, max_iter=50).fit(u)

    class_means, within = np.full((num_classes, k), np.nan), np.zeros((k, k))
    members = [u[label.numpy() == c] for c in range(num_classes)]
    for c, rows in enumerate(members):
        if len(rows):
            class_means[c] = rows.mean(0)
            within += (rows - class_means[c]).T @ (rows - class_means[c])
    within /= max(1, sum(map(len, members)))
    class_cholesky = np.zeros((num_classes, k, k))
    for c, rows in enumerate(members):
        scatter = (rows - class_means[c]).T @ (rows - class_means[c]) if len(rows) else 0
        class_cholesky[c] = np.linalg.cholesky((scatter + k * within) / (len(rows) + k) + 1e-4 * np.eye(k))
    arrays = (
        pca.mean_,
        pca.components_,
        std,
        mixture.weights_,
        mixture.means_,
        np.linalg.cholesky(mixture.covariances_),
        class_means,
        class_cholesky,
    )
    return LatentPrior(*(torch.from_numpy(np.ascontiguousarray(array)).float() for array in arrays))
