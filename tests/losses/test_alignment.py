import pytest
import torch

from flowergen.losses.alignment import alignment_loss


def test_equal_orthogonal_and_opposite_features_have_distance_0_1_and_2() -> None:
    """Whatever their lengths."""
    features = torch.tensor([3.0, 0.0])[None, :, None, None].expand(3, 2, 4, 5)
    predicted = torch.tensor([[0.1, 0.0], [0.0, 7.0], [-2.0, 0.0]])[:, :, None, None].expand(3, 2, 4, 5)
    torch.testing.assert_close(alignment_loss(predicted, features), torch.tensor([0.0, 1.0, 2.0]))


def test_it_is_the_mean_over_positions_of_one_minus_the_cosine() -> None:
    """Written out in float64; features may be float16, as they are cached."""
    predicted, features = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2).half()
    loss = alignment_loss(predicted, features)
    assert loss.dtype == torch.float32
    for i in range(2):
        cosines = [
            float((p @ f) / (p.norm() * f.norm()))
            for p, f in zip(predicted[i].double().flatten(1).T, features[i].double().flatten(1).T, strict=True)
        ]
        assert loss[i].item() == pytest.approx(1 - sum(cosines) / 4, abs=1e-5)
