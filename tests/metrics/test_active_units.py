import torch

from flowergen.metrics.active_units import ActiveUnits


def test_a_unit_is_active_where_its_mean_varies_over_the_pictures() -> None:
    """Standard deviations 0, 0.09, 0.11, 1 around means far from 0: the last two exceed a variance of 0.01."""
    torch.manual_seed(0)
    mean = torch.randn(4000, 2, 1, 2) * torch.tensor([0.0, 0.09, 0.11, 1.0]).view(2, 1, 2) + torch.tensor(1.5)
    metric = ActiveUnits()
    for part in mean.split([1000, 2500, 500]):
        metric.update(part)
    assert metric.compute() == 2
    assert metric.compute() == (mean.double().var(0, unbiased=False) > 0.01).sum()
    metric.reset()
    metric.update(torch.ones(3, 4, 1, 1))
    assert metric.compute() == 0
    assert metric.state_dict() == {}, "it must not change what a checkpoint holds"
