"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Pairs = list[tuple[Tensor, Tensor]]


class EMA(nn.Module):
    """The average theta_ema <- d theta_ema + (1 - d) theta, with d = min(decay, (1 + t) / (10 + t)) at step t.

    The smaller decay of the first steps removes the initialisation from the average (as in TensorFlow's
    ``ExponentialMovingAverage(num_updates=...)``). As a submodule, it is moved and saved with its parent. BatchNorm's
    statistics are averaged as well, because those of the last few batches match the last weights, not their average.

    Args:
        net: the network to average.
        decay: in [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float):
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay
        self._known: tuple[nn.Module, Pairs] | None = None

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Update the average with the weights after optimiser step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = self._pairs(net)
        numbers = [pair for pair in pairs if pair[0].is_floating_point()]
        update = get_ema_multi_avg_fn(decay)  # one kernel for many tensors
        update([average for average, _ in numbers], [value for _, value in numbers], step)
        for average, value in pairs:
            if not average.is_floating_point():  # BatchNorm's count of batches
                average.copy_(value)

    def _pairs(self, net: nn.Module) -> Pairs:
        """Return the tensors of the average with those of the network.

        Listing the tensors of a network of 150 modules takes a millisecond or two, so it is done once, unless there are
        buffers: unlike parameters, these are other objects once a network has moved to another device.
        """
        if self._known is not None and self._known[0] is net:
            return self._known[1]
        averages, values = (each.state_dict(keep_vars=True).values() for each in (self.net, net))
        pairs = list(zip(averages, values, strict=True))
        if all(isinstance(value, nn.Parameter) for value in values):
            self._known = net, pairs
        return pairs

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode, because the average is used only for inference."""
        return super().train(False)
