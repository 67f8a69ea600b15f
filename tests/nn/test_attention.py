import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowergen.nn.attention import ChannelAttention, SelfAttention, SpatialAttention


def randomised(module: nn.Module) -> nn.Module:
    """Also what starts at zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double()


def feature_map(num: int = 3, channels: int = 8) -> torch.Tensor:
    return torch.randn(num, channels, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_channel_attention_is_squeeze_and_excitation():
    """One factor in (0, 1) for each channel of each picture, from that picture's means alone."""
    attention, h = randomised(ChannelAttention(8)), feature_map()
    for n in range(3):
        means = torch.stack([h[n, c].sum() / 20 for c in range(8)])
        hidden = (attention.squeeze.weight @ means + attention.squeeze.bias).clamp_min(0)
        factor = 1 / (1 + torch.exp(-(attention.excite.weight @ hidden + attention.excite.bias)))
        torch.testing.assert_close(attention(h)[n], h[n] * factor[:, None, None])


@pytest.mark.parametrize(("channels", "hidden"), [(8, 4), (64, 4), (128, 8), (512, 32)])
def test_channel_attention_squeezes_to_a_sixteenth_but_not_below_four(channels: int, hidden: int):
    assert ChannelAttention(channels).squeeze.out_features == hidden


def test_spatial_attention_is_cbam_s_mask():
    """One factor for each position, from mean and maximum over the channels in its 7 x 7 neighbourhood."""
    attention, h = randomised(SpatialAttention()), feature_map()
    padded = F.pad(torch.stack([h.mean(1), h.max(1).values], 1), (3, 3, 3, 3))
    expected = torch.empty_like(h)
    for row in range(4):
        for column in range(5):
            window = padded[:, :, row : row + 7, column : column + 7]
            logit = (window * attention.conv.weight[0]).sum((1, 2, 3)) + attention.conv.bias
            expected[:, :, row, column] = h[:, :, row, column] * logit.sigmoid()[:, None]
    torch.testing.assert_close(attention(h), expected)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_self_attention_is_softmax_of_likeness_over_positions(num_heads: int):
    """Written out by hand, for each picture, head and position, behind the norm and with the residual connection."""
    attention, h = randomised(SelfAttention(8, nn.GroupNorm(2, 8), num_heads)), feature_map()
    width = 8 // num_heads
    for n in range(3):
        tokens = attention.norm(h)[n].flatten(1).T  # (20, 8)
        q, k, v = (
            tokens @ attention.to_qkv.weight[8 * i : 8 * i + 8, :, 0, 0].T + attention.to_qkv.bias[8 * i : 8 * i + 8]
            for i in range(3)
        )
        heads = []
        for head in range(num_heads):
            own = slice(head * width, (head + 1) * width)
            weights = torch.exp(q[:, own] @ k[:, own].T / math.sqrt(width))  # (20, 20)
            heads.append(weights / weights.sum(1, keepdim=True) @ v[:, own])
        out = torch.cat(heads, 1) @ attention.to_out.weight[:, :, 0, 0].T + attention.to_out.bias  # (20, 8)
        torch.testing.assert_close(attention(h)[n], h[n] + out.T.view(8, 4, 5))


def test_self_attention_starts_as_the_identity():
    h = feature_map().float()
    assert torch.equal(SelfAttention(8, nn.GroupNorm(2, 8))(h), h)


def test_self_attention_knows_no_order_of_positions():
    """Permuted positions come out permuted: position is a token."""
    attention, h = randomised(SelfAttention(8, nn.Identity())), feature_map()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    out = attention(h).flatten(2)
    torch.testing.assert_close(attention(h.flatten(2)[:, :, order].view_as(h)).flatten(2), out[:, :, order])
    assert not torch.allclose(out, out[:, :, order])


def test_every_position_hears_of_every_other_in_its_picture_and_of_none_in_another():
    """The ancestors attended over the batch, or over a single token, which does nothing."""
    attention, h = randomised(SelfAttention(8, nn.Identity())), feature_map().requires_grad_()
    attention(h)[1, :, 0, 0].sum().backward()
    heard = h.grad.abs().sum(1)  # (N, h, w)
    assert heard[1].min() > 0
    assert heard[0].abs().max() == heard[2].abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(attention(h[1:2]), attention(h)[1:2])
