"""Class-conditional logits of a discriminator."""

from torch import Tensor, nn


class ClassProjection(nn.Module):
    """The projection discriminator, v_y . phi(x) / sqrt(D) + psi(phi(x)), on frozen features of pictures.

    Source: Miyato & Koyama 2018 (arXiv:1802.05637, equation 4). phi is LayerNorm and an MLP of the features' mean over
    positions; the division by sqrt(D) keeps the initial logits near 0.

    Args:
        channels: C of the features.
        num_classes: K; label K means no class.
        dim: D of phi.
    """

    def __init__(self, channels: int, num_classes: int, dim: int):
        super().__init__()
        self.phi = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim), nn.LeakyReLU(0.2), nn.Linear(dim, dim))
        self.psi = nn.Linear(dim, 1)
        self.embed = nn.Embedding(num_classes + 1, dim)

    def forward(self, features: Tensor, label: Tensor) -> Tensor:
        """(N, C, h, w) and (N,) int64 -> (N, 1) float32 logits, positive for a photograph of its class."""
        h = self.phi(features.mean((2, 3)))  # (N, D)
        return (self.psi(h) + (h * self.embed(label)).sum(1, keepdim=True) / h.shape[1] ** 0.5).float()
