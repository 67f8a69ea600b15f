import pytest
import torch
from torch import nn

from flowergen.nn.attention import ChannelAttention, SpatialAttention
from flowergen.nn.blocks import NORMS, LayerNorm2d, ResidualBlock


def layer_norm(channels: int) -> LayerNorm2d:
    norm = LayerNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_layer_norm_normalises_each_position_over_its_channels():
    """nn.LayerNorm on the moved axis, with its scale and shift; mean 0 and variance 1 without them."""
    torch.manual_seed(0)
    h, norm = 3 + 2 * torch.randn(2, 8, 4, 5), layer_norm(8)
    oracle = nn.LayerNorm(8)
    oracle.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(h), oracle(h.movedim(1, -1)).movedim(-1, 1))
    plain = LayerNorm2d(8)(h).double()
    torch.testing.assert_close(plain.mean(1), torch.zeros(2, 4, 5).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain.var(1, unbiased=False), torch.ones(2, 4, 5).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", [nn.InstanceNorm2d(8), nn.GroupNorm(1, 8)], ids=["InstanceNorm", "GroupNorm(1)"])
def test_layer_norm_is_none_of_the_norms_that_go_by_its_name(other: nn.Module):
    h = torch.randn(2, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(LayerNorm2d(8)(h), other(h), atol=0.1)


def test_layer_norm_looks_at_no_other_position_and_no_other_picture():
    torch.manual_seed(0)
    h, norm = torch.randn(2, 8, 4, 5), layer_norm(8)
    changed = h.clone()
    changed[1] += 1
    changed[0, :, 2, 3] *= 5
    same = torch.ones(2, 4, 5, dtype=torch.bool)
    same[1], same[0, 2, 3] = False, False
    before, after = norm(h).movedim(1, -1), norm(changed).movedim(1, -1)
    assert torch.equal(before[same], after[same])


def test_layer_norm_does_not_mind_how_the_memory_is_laid_out():
    torch.manual_seed(0)
    h, norm = torch.randn(2, 8, 4, 5), layer_norm(8)
    torch.testing.assert_close(norm(h.to(memory_format=torch.channels_last)), norm(h))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", [(False, False), (True, False), (False, True), (True, True)])
def test_a_residual_block_starts_as_the_identity_and_can_leave_it(norm: str, attention: tuple[bool, bool]):
    """Attention multiplies the branch, so that the zero in front of it stays a zero, and its gradient does not."""
    torch.manual_seed(0)
    block, h = ResidualBlock(6, norm, "silu", *attention), torch.randn(2, 6, 5, 5)
    assert torch.equal(block(h), h)
    (block(h) * torch.randn(h.shape)).sum().backward()
    last_conv = [module for module in block.modules() if isinstance(module, nn.Conv2d) and module.out_channels == 6][-1]
    assert last_conv.weight.grad is not None
    assert last_conv.weight.grad.abs().min() > 0


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("spatial", [False, True])
def test_attention_is_in_a_residual_block_where_it_is_asked_for(channel: bool, spatial: bool):
    """It ends the branch: with random weights the output is that of the plain block's branch through it, channels first."""
    torch.manual_seed(0)
    block, h = ResidualBlock(6, "group", "silu", channel, spatial), torch.randn(2, 6, 5, 5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    kinds = [type(module) for module in block.modules()]
    assert (ChannelAttention in kinds, SpatialAttention in kinds) == (channel, spatial)
    branch = block.layers[:6](h)
    for kind in (ChannelAttention, SpatialAttention):
        for module in block.layers:
            if isinstance(module, kind):
                branch = module(branch)
    torch.testing.assert_close(block(h), h + branch)
    assert (not torch.allclose(block(h), h + block.layers[:6](h))) == (channel or spatial)
