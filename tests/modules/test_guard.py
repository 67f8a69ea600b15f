import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from flowergen.modules.guard import MAX_ROLLBACKS, Guard


def trained(steps: int, net: nn.Module | None = None, optimizer: Any = None) -> tuple[nn.Module, torch.optim.Adam]:
    if net is None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(steps):
        net(torch.rand(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


@pytest.mark.parametrize(
    ("psnrs", "in_play_from", "failed"),
    [
        ([20, 21, 20.5, 19.9], 0, [False, False, False, True]),  # a margin of 1 dB below the best, not below the last
        ([20, 15, 20, 18.9], 2, [False, False, False, True]),  # before the game nothing counts
        ([20, math.nan, 20.1], 0, [False, True, False]),
        ([math.nan, 20.0, 19.5], 1, [False, False, False]),
        ([19.0, 18.0, 17.0], 0, [False, False, True]),  # a slow slide adds up
    ],
)
def test_an_epoch_has_failed_when_psnr_is_a_margin_below_its_best(
    psnrs: list[float], in_play_from: int, failed: list[bool]
) -> None:
    guard = Guard("warn", margin=1.0)
    assert [guard.look(psnr, in_play=epoch >= in_play_from) for epoch, psnr in enumerate(psnrs)] == failed


def test_going_back_restores_weights_buffers_and_optimiser_three_times_at_most() -> None:
    guard = Guard("rollback", margin=1.0)
    net, optimizer = trained(3)
    expected = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], expected)
    guard.keep(net, [optimizer])
    for number in range(1, MAX_ROLLBACKS + 1):
        trained(2, net, optimizer)
        assert guard.roll_back(net, [optimizer])
        assert guard.factor == 0.5**number
        expected.seek(0)
        weights, state = torch.load(expected, weights_only=True)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
        for a, b in zip(optimizer.state_dict()["state"].values(), state["state"].values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    trained(2, net, optimizer)
    assert not guard.roll_back(net, [optimizer])


def test_training_after_going_back_is_the_training_that_would_have_been() -> None:
    guard = Guard("rollback", margin=1.0)
    net, optimizer = trained(3)
    guard.keep(net, [optimizer])
    torch.manual_seed(7)
    trained(2, net, optimizer)
    straight = {name: value.clone() for name, value in net.state_dict().items()}
    guard.roll_back(net, [optimizer])
    torch.manual_seed(7)
    trained(2, net, optimizer)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, straight[name], rtol=0, atol=0)


def test_a_guard_that_only_warns_keeps_no_second_set_of_weights() -> None:
    guard = Guard("warn", margin=1.0)
    net, optimizer = trained(1)
    guard.keep(net, [optimizer])
    assert guard.state_dict()["good"] is None
    assert not guard.roll_back(net, [optimizer])
    assert guard.factor == 1.0


def test_it_survives_a_checkpoint() -> None:
    guard, other = Guard("rollback", margin=1.0), Guard("rollback", margin=1.0)
    net, optimizer = trained(2)
    guard.look(20.0, in_play=True)
    guard.keep(net, [optimizer])
    guard.roll_back(net, [optimizer])
    file = io.BytesIO()
    torch.save(guard.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.best_psnr, other.num_rollbacks, other.factor) == (20.0, 1, 0.5)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    trained(1, net, optimizer)
    assert other.roll_back(net, [optimizer])
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
