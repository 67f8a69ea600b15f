from collections.abc import Callable

import pytest
import torch
from torch import nn

from flowergen.modules.ema import EMA


def test_average_follows_its_recursion() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema, expected = EMA(net, decay=0.9), 1.0
    for step in range(200):
        nn.init.constant_(net.weight, float(step))
        ema.update(net, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema.net.weight.item(), expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_averaged_too_gradients_are_not_wanted_and_train_mode_never_comes() -> None:
    net = nn.BatchNorm2d(2)
    ema = EMA(net, 0.5)
    before = ema.net.running_mean.clone()
    net(torch.randn(4, 2, 3, 3) + 3)
    ema.update(net, 10**6)
    torch.testing.assert_close(ema.net.running_mean, 0.5 * before + 0.5 * net.running_mean)
    assert ema.net.num_batches_tracked == net.num_batches_tracked == 1
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.train().net.training


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm1d])
def test_networks_may_move_and_change_between_updates(norm: Callable[[int], nn.Module]) -> None:
    """To another type, as they would to another device, and to another network; the average has one step of each."""
    first, second = (nn.Sequential(nn.Linear(2, 2), norm(2)) for _ in range(2))
    ema = EMA(first, 0.5)
    for moved in (first.float, first.double, second.double):
        net = moved()
        ema.to(next(net.parameters()).dtype)
        before = {name: value.clone() for name, value in ema.net.state_dict().items()}
        for value in net.state_dict().values():
            value.add_(1)
        ema.update(net, 10**6)
        for name, value in net.state_dict().items():
            expected = 0.5 * before[name] + 0.5 * value if value.is_floating_point() else value
            torch.testing.assert_close(ema.net.state_dict()[name], expected)
