import pytest
import torch
import torch.nn.functional as F

from flowergen.losses.perceptual import feature_distance, normalised_feature_distance


def features(seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, 6, 6, generator=g), 10 * torch.randn(3, 8, 3, 3, generator=g)]


def test_the_distance_is_the_mean_over_layers_of_mean_squares():
    a, b = features(0), features(1)
    for n in range(3):
        expected = sum(F.mse_loss(x[n].double(), y[n].double()).item() for x, y in zip(a, b, strict=True)) / 2
        assert feature_distance(a, b)[n].item() == pytest.approx(expected, rel=1e-5)


def test_the_normalised_distance_is_one_minus_the_cosine_twice():
    """|a/|a| - b/|b||^2 = 2 - 2 cos, by torch's cosine similarity, whatever the layer's scale."""
    a, b = features(0), features(1)
    expected = torch.stack(
        [2 - 2 * F.cosine_similarity(x.double(), y.double()).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(normalised_feature_distance(a, b).double(), expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalised_feature_distance([100 * x for x in a], b), normalised_feature_distance(a, b))


@pytest.mark.parametrize("distance", [feature_distance, normalised_feature_distance])
def test_a_distance_is_zero_for_equal_and_per_picture_in_float32(distance):
    a, b = features(0), features(1)
    assert distance(a, a).tolist() == [0.0] * 3
    assert (distance(a, b) > 0).all()
    torch.testing.assert_close(distance([x[1:2] for x in a], [y[1:2] for y in b]), distance(a, b)[1:2])
    half = distance([x.half() for x in a], b)
    assert half.dtype == torch.float32
    assert torch.equal(half, distance([x.half().float() for x in a], b))
    with pytest.raises(ValueError, match="shorter"):
        distance(a, b[:1])


def test_the_ends_of_the_normalised_distance():
    """4 for opposite directions, 2 for orthogonal ones."""
    a = torch.tensor([1.0, 0.0])[None, :, None, None]
    assert normalised_feature_distance([a], [-3 * a]).item() == 4
    assert normalised_feature_distance([a], [5 * a.flip(1)]).item() == 2


def test_a_position_without_any_activation_is_no_trouble_behind_a_relu():
    """Its direction does not exist: the value is finite, and no gradient passes what the ReLU has switched off."""
    before = torch.tensor([[-1.0, -2.0], [1.0, 2.0]]).view(2, 2, 1, 1).requires_grad_()
    other = torch.tensor([[1.0, 1.0], [2.0, 1.0]]).view(2, 2, 1, 1)
    value = normalised_feature_distance([before.relu()], [other])
    assert value[0].item() == pytest.approx(1)
    value.sum().backward()
    assert before.grad.isfinite().all()
    assert before.grad[0].abs().max() == 0
    assert before.grad[1].abs().max() > 0
