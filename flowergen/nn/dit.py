"""The diffusion transformer."""

import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.blocks import zero
from flowergen.nn.embeddings import FlatAsMap, TimeAndClass, sinusoidal_2d


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each x + gate * layer((1 + scale) norm(x) + shift), the gates starting at zero.

    Source: DiT (Peebles & Xie 2023, arXiv:2212.09748), section 3.2, "adaLN-Zero block".

    Args:
        dim: D of tokens and conditioning vector.
        num_heads: divides D.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(dim, 6 * dim)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D) tokens and (N, D) -> (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)  # (N, 1, D) each
        x = x + gate1 * self._attention((1 + scale1) * self.norm1(x) + shift1)  # (N, T, D)
        return x + gate2 * self.mlp((1 + scale2) * self.norm2(x) + shift2)  # (N, T, D)

    def _attention(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.to_qkv(x).view(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (N, H, T, D / H) each
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim))


class DiT(nn.Module):
    """A denoiser that is a transformer over patches (arXiv:2212.09748). Its first answer is 0.

    Args:
        shape: (C, h, w) of what it denoises; a flat latent (D, 1, 1) is folded into a map of 64 tokens, see ``FlatAsMap``.
        num_classes: K; label K is "no class".
        patch_size: p; h and w are multiples of it, and there are h w / p^2 tokens.
        hidden_size: D of the tokens, a multiple of 4.
        depth: number of blocks.
        num_heads: divides D.

    Raises:
        ValueError: the patch size does not divide the map, or the heads the hidden size.
    """

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, patch_size: int, hidden_size: int, depth: int, num_heads: int
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
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(hidden_size, 2 * hidden_size)))
        self.to_patches = zero(nn.Linear(hidden_size, channels * patch_size**2))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear) and module.weight.any():
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, with_hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, h, w), (N,) times and (N,) labels -> (N, C, h, w).

        ``with_hidden``: and the tokens after half of the blocks, as a map (N, D, h / p, w / p).
        """
        c = self.embed(t, label)  # (N, D)
        h = self.to_tokens(self.flat.fold(x) if self.flat else x)  # (N, D, h / p, w / p)
        rows, columns = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2) + self.positions  # (N, T, D)
        hidden = h
        for number, block in enumerate(self.blocks, start=1):
            h = block(h, c)
            if number <= max(1, len(self.blocks) // 2):
                hidden = h
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # (N, 1, D) each
        h = self.to_patches((1 + scale) * self.norm(h) + shift)  # (N, T, C p^2)
        p = self.patch_size
        out = h.view(h.shape[0], rows, columns, -1, p, p).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).float()
        out = self.flat.unfold(out) if self.flat else out
        return (out, hidden.transpose(1, 2).unflatten(2, (rows, columns))) if with_hidden else out
