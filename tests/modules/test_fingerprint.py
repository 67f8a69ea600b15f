import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from flowergen.modules.fingerprint import fingerprint


def network() -> nn.Sequential:
    """With a buffer of floats and one of a single integer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_it_is_a_function_of_the_state_alone() -> None:
    """Not of the object, the mode, the order of memory or whether there are gradients; and it is 128 bits."""
    net = network()
    first = fingerprint(net)
    assert len(first) == 32
    assert int(first, 16) >= 0
    assert fingerprint(network()) == first
    assert fingerprint(copy.deepcopy(net).eval().requires_grad_(False)) == first
    assert fingerprint(copy.deepcopy(net).to(memory_format=torch.channels_last)) == first
    loaded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert fingerprint(loaded) != first
    loaded.load_state_dict(net.state_dict())
    assert fingerprint(loaded) == first


def nudge(net: nn.Sequential) -> None:
    weight = net.state_dict()["2.weight"]
    weight[1, 3] = torch.nextafter(weight[1, 3], torch.tensor(9.0))


def swap(net: nn.Sequential) -> None:
    weight = net.state_dict()["0.weight"]
    weight[[0, 1]] = weight[[1, 0]]


@pytest.mark.parametrize(
    "change",
    [
        nudge,
        swap,
        lambda net: net.state_dict()["1.running_mean"].add_(1),
        lambda net: net.state_dict()["1.num_batches_tracked"].add_(1),
        lambda net: net.double(),
        lambda net: net.append(nn.Linear(1, 1)),
        lambda net: net.insert(2, nn.ReLU()),  # names move on
    ],
)
def test_whatever_changes_a_network_changes_it(change: Callable[[nn.Sequential], object]) -> None:
    """One bit of a weight, two rows swapped, a buffer, a name, a type."""
    net = network()
    change(net)
    assert fingerprint(net) != fingerprint(network())


def test_the_shape_counts_where_the_bytes_are_the_same() -> None:
    wide, high = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    for net in (wide, high):
        nn.init.ones_(net.weight)
    assert fingerprint(wide) != fingerprint(high)
