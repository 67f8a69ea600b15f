import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from flowergen.modules.guard import MAX_ROLLBACKS, Guard
from flowergen.nn.discriminator import PatchDiscriminator


def network() -> nn.Module:
    """With buffers that training moves, one of them of integers, and parametrised weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Upsample(size=16))


def two_networks() -> tuple[nn.ModuleDict, list[torch.optim.Optimizer]]:
    module = nn.ModuleDict({"net": network(), "discriminator": PatchDiscriminator(2, 1, "spectral")})
    return module, [
        torch.optim.Adam(module["net"].parameters(), lr=1e-2, betas=(0.5, 0.9)),
        torch.optim.SGD(module["discriminator"].parameters(), lr=1e-2, momentum=0.9),
    ]


def train(module: nn.ModuleDict, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(3):
        module["discriminator"].update_spectral_norms()
        module["discriminator"](module["net"](torch.randn(2, 3, 8, 8, generator=g))).logits.square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def snapshot(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Any:
    return copy.deepcopy((dict(module.state_dict()), [optimizer.state_dict() for optimizer in optimizers]))


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def failures(guard: Guard, *psnrs: float, adversarial_started: bool = True) -> list[bool]:
    found = []
    for psnr in psnrs:
        guard.check(psnr, adversarial_started)
        found.append(guard.failed)
    return found


@pytest.mark.parametrize(
    ("psnrs", "failed"),
    [
        ([20, 21, 22], [False, False, False]),
        ([20, 18.1, 18.0, 17.9], [False, False, False, True]),  # 2 dB below the best is still good
        ([20, 17, 19, 17.5], [False, True, False, True]),
        ([20, 25, 22.9, 23.1], [False, False, True, False]),  # against the best, not the last
        ([20, 19, 18, 17, 16], [False, False, False, True, True]),  # small steps add up
        ([20, math.nan, 20], [False, True, False]),
        ([math.nan, 20], [True, False]),  # NaN from the beginning
        ([20, -math.inf], [False, True]),
    ],
)
def test_an_epoch_has_failed_where_psnr_is_more_than_the_margin_below_the_best(psnrs: list[float], failed: list[bool]) -> None:
    guard = Guard("warn", 2.0)
    assert failures(guard, *psnrs) == failed


def test_before_adversarial_training_nothing_fails_and_its_last_epoch_is_the_first_reference() -> None:
    """A warm-up of the KL may cost more than the margin, which adversarial training does not cause."""
    guard = Guard("warn", 2.0)
    assert failures(guard, 30, 20, math.nan, adversarial_started=False) == [False] * 3
    assert guard.best_psnr == 20
    assert failures(guard, 18.1, 17.9) == [False, True]


def test_only_mode_rollback_restores_the_good_epoch_from_a_checkpoint() -> None:
    """``model.guard`` may change when a run is resumed."""
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    guard.check(20.0, adversarial_started=True)
    guard.keep(module, optimizers)
    for mode, rolls_back in (("rollback", True), ("warn", False)):
        other = Guard(mode, 1.0)  # type: ignore[arg-type]
        other.load_state_dict(guard.state_dict())
        assert other.roll_back(module, optimizers) == rolls_back


def test_an_epoch_whose_psnr_is_nan_is_not_kept() -> None:
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    guard.check(math.nan, adversarial_started=False)
    guard.keep(module, optimizers)
    assert guard.state_dict()["good"] is None


def test_a_failure_does_not_lower_the_best() -> None:
    guard = Guard("rollback", 1.0)
    failures(guard, 20, 10, math.nan, 5)
    assert guard.best_psnr == 20


def test_a_rollback_restores_both_networks_and_their_optimisers_to_the_bit() -> None:
    """Also when it is the second to the same epoch: what was restored and trained on has not changed what is kept."""
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    train(module, optimizers, seed=0)
    guard.keep(module, optimizers)
    good = snapshot(module, optimizers)
    for number in range(2):
        train(module, optimizers, seed=1 + number)
        with pytest.raises(AssertionError):
            assert_same(snapshot(module, optimizers), good)
        assert guard.roll_back(module, optimizers)
        assert_same(snapshot(module, optimizers), good)


def test_training_continues_from_a_rollback_as_from_the_good_epoch() -> None:
    """The optimisers' moments are the ones that are used, and hold on to the same parameters."""
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    train(module, optimizers, seed=0)
    guard.keep(module, optimizers)
    train(module, optimizers, seed=1)
    after = snapshot(module, optimizers)
    train(module, optimizers, seed=2)
    guard.roll_back(module, optimizers)
    train(module, optimizers, seed=1)
    assert_same(snapshot(module, optimizers), after)


def test_each_rollback_halves_the_weight_three_times_at_most() -> None:
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    assert guard.factor == 1
    guard.keep(module, optimizers)
    factors = []
    for _ in range(MAX_ROLLBACKS):
        assert guard.roll_back(module, optimizers)
        factors.append(guard.factor)
    assert factors == [0.5, 0.25, 0.125]
    train(module, optimizers, seed=0)
    here = snapshot(module, optimizers)
    guard.keep(module, optimizers)
    assert not guard.roll_back(module, optimizers)
    assert guard.factor == 0.125
    assert_same(snapshot(module, optimizers), here)


def test_without_a_good_epoch_nothing_is_rolled_back() -> None:
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    assert not guard.roll_back(module, optimizers)
    assert guard.factor == 1


def test_a_guard_that_only_warns_keeps_nothing_and_changes_nothing() -> None:
    (module, optimizers), guard = two_networks(), Guard("warn", 1.0)
    guard.keep(module, optimizers)
    assert guard.state_dict()["good"] is None
    before = snapshot(module, optimizers)
    assert not guard.roll_back(module, optimizers)
    assert guard.factor == 1
    assert_same(snapshot(module, optimizers), before)


def test_its_state_outlives_the_process() -> None:
    """Through a file that is read with weights_only: the same best PSNR, count and good epoch."""
    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    train(module, optimizers, seed=0)
    guard.check(20, adversarial_started=True)
    guard.keep(module, optimizers)
    good = snapshot(module, optimizers)
    guard.roll_back(module, optimizers)
    file = io.BytesIO()
    torch.save(guard.state_dict(), file)
    file.seek(0)

    (module, optimizers), guard = two_networks(), Guard("rollback", 1.0)
    train(module, optimizers, seed=3)
    guard.load_state_dict(torch.load(file, weights_only=True))
    assert (guard.best_psnr, guard.num_rollbacks, guard.factor) == (20, 1, 0.5)
    assert failures(guard, 18.9) == [True]
    assert guard.roll_back(module, optimizers)
    assert_same(snapshot(module, optimizers), good)
