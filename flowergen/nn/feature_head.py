"""Projection of a denoiser's hidden features to those of a picture."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureHead(nn.Module):
    """An MLP at each position, after adaptive average pooling: h_phi of REPA (Yu et al. 2024, arXiv:2410.06940). Used only in
    training.

    Args:
        in_channels: D of the hidden map.
        out_channels: K of the features.
        hidden_channels: hidden channels of the MLP.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1), nn.SiLU(), nn.Conv2d(hidden_channels, out_channels, 1)
        )

    def forward(self, hidden: Tensor, size: Sequence[int]) -> Tensor:
        """(N, D, h, w) and the height and width of the feature map -> (N, K, height, width)."""
        rows, columns = (_averaging(*sides, hidden) for sides in zip(hidden.shape[-2:], size, strict=True))
        out: Tensor = self.layers(torch.einsum("ndij,iy,jx->ndyx", hidden, rows, columns))
        return out


def _averaging(side: int, target: int, like: Tensor) -> Tensor:
    """Return adaptive average pooling of a side as a matrix (side, target): torch's has no deterministic gradient on a GPU."""
    return F.adaptive_avg_pool1d(torch.eye(side, dtype=like.dtype, device=like.device)[None], target)[0]
