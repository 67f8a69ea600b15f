import torch

from flowergen.nn.feature_head import FeatureHead


def test_a_larger_map_is_averaged_over_and_each_position_is_on_its_own() -> None:
    """Position (0, 1) of the answer depends on the four of the upper right quarter, through their mean, and on no other."""
    head, hidden = FeatureHead(3, 5, hidden_channels=8), torch.randn(2, 3, 4, 4, requires_grad=True)
    out = head(hidden, (2, 2))
    assert out.shape == (2, 5, 2, 2)
    (gradient,) = torch.autograd.grad(out[:, :, 0, 1].sum(), hidden)
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, 2:] = True
    assert torch.equal((gradient != 0).all(1).all(0), inside)
    assert not gradient[:, :, ~inside].any()
    mean = hidden.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(out, head(mean, (2, 2)))


def test_a_smaller_map_is_repeated() -> None:
    head = FeatureHead(3, 5, hidden_channels=8)
    out = head(torch.randn(1, 3, 2, 2), (4, 4))
    torch.testing.assert_close(out, out[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))
