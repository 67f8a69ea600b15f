"""Embeddings of time, class and positions for denoisers."""

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10_000.0  # upper bound of the longest period of ``sinusoidal``, divided by 2 pi


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Compute cos(t w_i) and sin(t w_i) for dim / 2 frequencies from 1 down to nearly 1 / ``MAX_PERIOD``.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, as used for time by DDPM (arXiv:2006.11239, appendix B).

    Args:
        t: (N,).
        dim: D, even.

    Returns:
        (N, D) float32.
    """
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(dim // 2, device=t.device) / (dim // 2))  # (D / 2,)
    angles = t.float()[:, None] * frequencies  # (N, D / 2)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def sinusoidal_2d(height: int, width: int, dim: int) -> Tensor:
    """Compute fixed embeddings of the positions of a map: half of the features for the row, half for the column.

    Args:
        height, width: h and w of the map.
        dim: D, a multiple of 4.

    Returns:
        (h w, D) float32, in reading order.
    """
    rows, columns = sinusoidal(torch.arange(height), dim // 2), sinusoidal(torch.arange(width), dim // 2)
    return torch.cat((rows.repeat_interleave(width, 0), columns.repeat(height, 1)), dim=1)


class TimeAndClass(nn.Module):
    """The conditioning vector of every block: an MLP of the time's sinusoids plus an embedding of the class.

    Embeddings of classes start from N(0, 1), as in ADM (arXiv:2105.05233), so that classes differ from the first step.

    Args:
        dim: D of the vector.
        num_classes: K; an additional embedding represents "no class", which guidance needs.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.frequencies = 256  # as in DiT (arXiv:2212.09748)
        self.time = nn.Sequential(nn.Linear(self.frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(num_classes + 1, dim)

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        """(N,) times and (N,) labels, K for no class -> (N, D)."""
        return self.time(sinusoidal(t, self.frequencies)) + self.label(label)


class FlatAsMap(nn.Module):
    """A flat latent (D, 1, 1) as a map (C, 8, 8) of 64 tokens, so that attention and convolutions have positions to work on.

    Token k holds dimensions k C to k C + C - 1; C is D / 64, rounded up, and the rest is padded with zeros.
    """

    side = 8

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.channels = -(-dim // self.side**2)

    def fold(self, z: Tensor) -> Tensor:
        """(N, D, 1, 1) -> (N, C, 8, 8)."""
        filled = nn.functional.pad(z.flatten(1), (0, self.channels * self.side**2 - self.dim))
        return filled.view(z.shape[0], self.side, self.side, self.channels).permute(0, 3, 1, 2)

    def unfold(self, h: Tensor) -> Tensor:
        """(N, C, 8, 8) -> (N, D, 1, 1)."""
        return h.permute(0, 2, 3, 1).flatten(1)[:, : self.dim, None, None]
