"""From a denoiser's hidden features to those of a picture."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureHead(nn.Module):
    """An MLP at each position, after averaging over the positions that fall together: h_phi of REPA (arXiv:2410.06940,
    section 3.2). It serves training alone.

    Args:
        in_channels: D of the hidden map.
        out_channels: K of the features.
        hidden_channels: of the MLP.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1), nn.SiLU(), nn.Conv2d(hidden_channels, out_channels, 1)
        )

    def forward(self, hidden: Tensor, size: Sequence[int]) -> Tensor:
        """(N, D, h, w) and the height and width of the features' map -> (N, K, height, width)."""
        out: Tensor = self.layers(F.adaptive_avg_pool2d(hidden, (size[0], size[1])))
        return out
