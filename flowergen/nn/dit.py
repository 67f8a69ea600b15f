"""The diffusion transformer."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.blocks import zero
from flowergen.nn.embeddings import FlatAsMap, TimeAndClass, sinusoidal_2d

Kind = Literal["original", "modern"]
ROTARY_BASE = 100.0  # upper bound of the longest period / 2 pi: maps are at most a few dozen positions wide


class SwiGLU(nn.Module):
    """silu(a) * b, the halves of a hidden layer (Shazeer 2020, arXiv:2002.05202), about as large as an MLP of width 4 D."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = -(-8 * dim // 3 // 16) * 16
        self.up, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        a, b = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(a) * b)


def rotary_2d(height: int, width: int, dim: int) -> Tensor:
    """Compute rotary embeddings (RoFormer, arXiv:2104.09864, section 3.2), half of the angles for the row, half for the column.

    Args:
        height, width: h and w of the map.
        dim: features per head, a multiple of 4.

    Returns:
        (2, h w, dim / 2): cosines and sines, in reading order.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), dim=1)  # (h w, dim / 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of values (i, i + dim / 2) of each token, x: (N, H, T, dim), by its angle, see ``rotary_2d``."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = rotation
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each x + gate * layer((1 + scale) norm(x) + shift), with the gates initialised to zero.

    Source: DiT (Peebles & Xie 2023, arXiv:2212.09748), section 3.2, "adaLN-Zero block"; ``modern`` has rotary embeddings,
    normalised queries and keys (Dehghani et al. 2023, arXiv:2302.05442, section 2) and SwiGLU, as in LightningDiT
    (arXiv:2501.01423, section 4), but no RMSNorm, which is slower than LayerNorm on a CPU.

    Args:
        dim: D of tokens and conditioning vector.
        num_heads: H, which must divide D.
        kind: ``original`` or ``modern``.
    """

    def __init__(self, dim: int, num_heads: int, kind: Kind = "original"):
        super().__init__()
        self.num_heads, modern = num_heads, kind == "modern"
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        original = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.mlp = SwiGLU(dim) if modern else original
        self.query_norm, self.key_norm = (nn.LayerNorm(dim // num_heads) if modern else None for _ in range(2))
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(dim, 6 * dim)))

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(N, T, D) tokens and (N, D) -> (N, T, D); ``modern`` also takes the (2, T, D / 2 H) of ``rotary_2d``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)  # (N, 1, D) each
        x = x + gate1 * self._attention((1 + scale1) * self.norm1(x) + shift1, rotation)  # (N, T, D)
        return x + gate2 * self.mlp((1 + scale2) * self.norm2(x) + shift2)  # (N, T, D)

    def _attention(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.to_qkv(x).view(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (N, H, T, D / H) each
        if self.query_norm is not None and self.key_norm is not None:
            assert rotation is not None, "a modern block needs the rotation angles of the positions"
            q, k = rotated(self.query_norm(q), rotation), rotated(self.key_norm(k), rotation)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim))


class DiT(nn.Module):
    """A denoiser that is a transformer over patches (arXiv:2212.09748). Its initial output is 0.

    Args:
        shape: (C, h, w) of the input; a flat latent (D, 1, 1) is folded into a map of 64 tokens, see ``FlatAsMap``.
        num_classes: K; label K means "no class".
        patch_size: p; h and w are multiples of it, and there are h w / p^2 tokens.
        hidden_size: D of the tokens, a multiple of 4.
        depth: number of blocks.
        num_heads: H, which must divide D.
        block: see ``DiTBlock``; ``modern`` needs D / H to be a multiple of 4.

    Raises:
        ValueError: the patch size does not divide the map, or 4 or the number of heads does not divide the hidden size.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        block: Kind = "original",  # for runs from before this option existed
    ):
        super().__init__()
        self.flat = FlatAsMap(shape[0]) if shape[1:] == (1, 1) else None
        channels, height, width = (self.flat.channels, self.flat.side, self.flat.side) if self.flat else shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide a map of {height} x {width}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of 4 and of num_heads={num_heads}")
        self.patch_size = patch_size
        self.hidden_channels = hidden_size
        self.embed = TimeAndClass(hidden_size, num_classes)
        self.to_tokens = nn.Conv2d(channels, hidden_size, patch_size, stride=patch_size)
        positions = sinusoidal_2d(height // patch_size, width // patch_size, hidden_size)
        self.register_buffer("positions", positions, persistent=False)
        if block == "modern" and hidden_size // num_heads % 4:
            raise ValueError(f"hidden_size={hidden_size} / num_heads={num_heads} must be a multiple of 4 for block=modern")
        rotation = rotary_2d(height // patch_size, width // patch_size, hidden_size // num_heads) if block == "modern" else None
        self.register_buffer("rotation", rotation, persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, block) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(hidden_size, 2 * hidden_size)))
        self.to_patches = zero(nn.Linear(hidden_size, channels * patch_size**2))
        for module in self.blocks.modules():  # on the meta device, where diffusers builds it, there are no values to look at
            if isinstance(module, nn.Linear) and not module.weight.is_meta and module.weight.any():
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, with_hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, h, w), (N,) times and (N,) labels -> (N, C, h, w).

        With ``with_hidden``, also return the tokens after half of the blocks, as a map (N, D, h / p, w / p).
        """
        c = self.embed(t, label)  # (N, D)
        h = self.to_tokens(self.flat.fold(x) if self.flat else x)  # (N, D, h / p, w / p)
        rows, columns = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2) + self.positions  # (N, T, D)
        hidden = h
        for number, block in enumerate(self.blocks, start=1):
            h = block(h, c, self.rotation)
            if number <= max(1, len(self.blocks) // 2):
                hidden = h
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # (N, 1, D) each
        h = self.to_patches((1 + scale) * self.norm(h) + shift)  # (N, T, C p^2)
        p = self.patch_size
        out = h.view(h.shape[0], rows, columns, -1, p, p).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).float()
        out = self.flat.unfold(out) if self.flat else out
        return (out, hidden.transpose(1, 2).unflatten(2, (rows, columns))) if with_hidden else out
