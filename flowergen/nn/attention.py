"""Channel attention, spatial attention by a mask, and self-attention over positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 16  # r of squeeze-and-excitation, as in its paper


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation: h * sigmoid(W2 relu(W1 mean(h))) (Hu et al. 2018, arXiv:1709.01507, equations 2 to 4).

    Args:
        channels: C; there are C / ``REDUCTION`` hidden units, at least 4.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(4, channels // REDUCTION)
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        s = h.mean((2, 3))  # (N, C)
        s = self.excite(self.squeeze(s).relu()).sigmoid()  # (N, C)
        return h * s[..., None, None]


class SpatialAttention(nn.Module):
    """h * sigmoid(conv7x7([mean over channels; maximum over channels])) (CBAM, Woo et al. 2018, arXiv:1807.06521, equation
    3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        pooled = torch.stack([h.mean(1), h.amax(1)], dim=1)  # (N, 2, h, w)
        return h * self.conv(pooled).sigmoid()


class SelfAttention(nn.Module):
    """h + W_o softmax(q k^T / sqrt(d)) v, over the positions of a map (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Positions are the tokens, channels their features. The output projection is initialised to zero, so the block starts as the
    identity.

    Args:
        channels: C.
        norm: norm of the input, over C channels.
        num_heads: number of heads, which must divide C.
    """

    def __init__(self, channels: int, norm: nn.Module, num_heads: int = 1):
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        n, _, height, width = h.shape
        qkv = self.to_qkv(self.norm(h)).flatten(2)  # (N, 3 C, h w)
        q, k, v = qkv.view(n, 3, self.num_heads, -1, height * width).transpose(-1, -2).unbind(1)  # (N, H, h w, C / H) each
        out = F.scaled_dot_product_attention(q, k, v)  # (N, H, h w, C / H)
        return h + self.to_out(out.transpose(-1, -2).reshape(n, -1, height, width))
