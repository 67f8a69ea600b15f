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
