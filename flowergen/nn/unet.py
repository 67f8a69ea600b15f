"""The UNet that predicts noise, on maps of any size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.attention import SelfAttention
from flowergen.nn.blocks import group_norm, zero
from flowergen.nn.embeddings import FlatAsMap, TimeAndClass


class ConditionedBlock(nn.Module):
    """h -> skip(h) + conv(silu((1 + scale) norm(conv(silu(norm(h)))) + shift)): adaptive group norm.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 3, on the block of DDPM. The last convolution starts at zero, so
    that the block starts as its skip.

    Args:
        in_channels: C.
        out_channels: C'.
        dim: D of the conditioning vector.
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(in_channels), group_norm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.to_scale_shift = nn.Linear(dim, 2 * out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(N, C, h, w) and (N, D) -> (N, C', h, w)."""
        scale, shift = self.to_scale_shift(F.silu(c))[:, :, None, None].chunk(2, dim=1)  # (N, C', 1, 1) each
        out = self.conv1(F.silu(self.norm1(h)))
        out = self.norm2(out) * (1 + scale) + shift
        return self.skip(h) + self.conv2(F.silu(out))


class Stage(nn.Module):
    """A conditioned block, then self-attention over the positions where asked for.

    Args:
        in_channels: C.
        out_channels: C'.
        dim: D of the conditioning vector.
        head_channels: features of an attention head; None for no attention.
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int, head_channels: int | None):
        super().__init__()
        self.block = ConditionedBlock(in_channels, out_channels, dim)
        self.attention: nn.Module = nn.Identity()
        if head_channels is not None:
            heads = max(1, out_channels // head_channels)
            heads = next(number for number in range(heads, 0, -1) if out_channels % number == 0)
            self.attention = SelfAttention(out_channels, group_norm(out_channels), heads)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(N, C, h, w) and (N, D) -> (N, C', h, w)."""
        return self.attention(self.block(h, c))


class UNet(nn.Module):
    """A denoiser of residual blocks, down and up again, with skip connections (Ronneberger et al. 2015, arXiv:1505.04597).

    As in DDPM (arXiv:2006.11239, appendix B) and ADM (arXiv:2105.05233). The last convolution starts at zero, so that the first
    answer is 0.

    Args:
        shape: (C, h, w) of what it denoises; a flat latent (D, 1, 1) is folded into a map of 64 tokens, see ``FlatAsMap``.
        num_classes: K; label K is "no class".
        channels: of the first level.
        multipliers: of the channels, one for each level; each level's map has half the side of the one before.
        num_blocks: of each level.
        attention_resolutions: short sides of the maps with self-attention; the smallest map has it in any case.
        head_channels: features of an attention head.

    Raises:
        ValueError: there are more levels than the map can be halved.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_resolutions: Sequence[int],
        head_channels: int,
    ):
        super().__init__()
        self.flat = FlatAsMap(shape[0]) if shape[1:] == (1, 1) else None
        in_channels, side = (self.flat.channels, self.flat.side) if self.flat else (shape[0], min(shape[1:]))
        if side >> (len(multipliers) - 1) < 2:
            raise ValueError(f"{len(multipliers)} levels halve a map of side {side} to less than 2: give fewer multipliers")
        dim = 4 * channels
        self.embed = TimeAndClass(dim, num_classes)
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)

        def stage(c_in: int, c_out: int, level: int) -> Stage:
            attends = -(-side // 2**level) in attention_resolutions
            return Stage(c_in, c_out, dim, head_channels if attends else None)

        widths = [channels * multiplier for multiplier in multipliers]
        self.down, self.halving, skips = nn.ModuleList(), nn.ModuleList(), [[channels]]
        c = channels
        for level, width in enumerate(widths):
            if level:
                self.halving.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append([c])
            self.down.append(nn.ModuleList(stage(c if i == 0 else width, width, level) for i in range(num_blocks)))
            skips[level] += [width] * num_blocks
            c = width
        self.hidden_channels = c
        self.middle = nn.ModuleList([Stage(c, c, dim, head_channels), Stage(c, c, dim, None)])
        self.up, self.doubling = nn.ModuleList(), nn.ModuleList()  # outermost level first, like down
        for level, width in reversed(list(enumerate(widths))):
            ins = [c] + [width] * num_blocks
            pairs = zip(ins, reversed(skips[level]), strict=True)
            self.up.insert(0, nn.ModuleList(stage(c_in + skip, width, level) for c_in, skip in pairs))
            c = width
            if level:
                self.doubling.insert(0, nn.Conv2d(c, c, 3, padding=1))
        self.last = nn.Sequential(group_norm(c), nn.SiLU(), zero(nn.Conv2d(c, in_channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, label: Tensor, with_hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, h, w), (N,) times and (N,) labels -> (N, C, h, w); ``with_hidden``: and the smallest map, (N, D, h', w')."""
        c = self.embed(t, label)  # (N, D)
        h = self.first(self.flat.fold(x) if self.flat else x)
        skips = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = self.halving[level - 1](h)
                skips.append(h)
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(h, c)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, c)
        hidden = h
        for level in reversed(range(len(self.up))):
            for stage in self.up[level]:  # type: ignore[attr-defined]
                h = stage(torch.cat((h, skips.pop()), dim=1), c)
            if level:
                h = self.doubling[level - 1](F.interpolate(h, size=skips[-1].shape[-2:]))  # an odd side too
        out = self.last(h).float()
        out = self.flat.unfold(out) if self.flat else out
        return (out, hidden) if with_hidden else out
