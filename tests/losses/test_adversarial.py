import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowergen.losses.adversarial import (
    WEIGHT_MIN,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    ramp,
)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(4, 1, 3, 5, generator=g), 2 * torch.randn(4, 1, 3, 5, generator=g)


def test_the_hinge_losses_are_their_formulas(logits: tuple[torch.Tensor, torch.Tensor]):
    """Patch by patch in Python's floats: 1/2 [max(0, 1 - D(x)) + max(0, 1 + D(x_hat))] and -D(x_hat)."""
    real, fake = logits
    for n in range(4):
        pairs = list(zip(real[n].flatten().tolist(), fake[n].flatten().tolist(), strict=True))
        expected = sum(max(0, 1 - r) + max(0, 1 + f) for r, f in pairs) / 2 / 15
        assert hinge_discriminator(real, fake)[n].item() == pytest.approx(expected, rel=1e-5)
        assert hinge_generator(fake)[n].item() == pytest.approx(-sum(f for _, f in pairs) / 15, rel=1e-5)


def test_the_non_saturating_losses_are_binary_cross_entropies(logits: tuple[torch.Tensor, torch.Tensor]):
    """Real against 1 and fake against 0 for the discriminator, fake against 1 for the generator."""
    real, fake = (x.double() for x in logits)

    def bce(x: torch.Tensor, target: float) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(x, torch.full_like(x, target), reduction="none").mean((1, 2, 3))

    torch.testing.assert_close(non_saturating_discriminator(*logits).double(), (bce(real, 1) + bce(fake, 0)) / 2)
    torch.testing.assert_close(non_saturating_generator(logits[1]).double(), bce(fake, 1))


def test_nothing_told_apart_costs_one_and_log_two():
    zero = torch.zeros(2, 1, 3, 3)
    assert hinge_discriminator(zero, zero).tolist() == [1, 1]
    torch.testing.assert_close(non_saturating_discriminator(zero, zero), torch.full((2,), math.log(2)))


def test_the_hinge_teaches_nothing_beyond_its_margin():
    """-1/2 and 1/2 within, 0 without; the generator always hears -1."""
    real = torch.tensor([-3.0, 0.0, 0.9, 1.1, 5.0]).view(5, 1, 1, 1).requires_grad_()
    fake = torch.tensor([3.0, 0.0, -0.9, -1.1, -5.0]).view(5, 1, 1, 1).requires_grad_()
    hinge_discriminator(real, fake).sum().backward()
    assert real.grad.flatten().tolist() == [-0.5, -0.5, -0.5, 0, 0]
    assert fake.grad.flatten().tolist() == [0.5, 0.5, 0.5, 0, 0]
    (gradient,) = torch.autograd.grad(hinge_generator(fake).sum(), fake)
    assert gradient.flatten().tolist() == [-1] * 5


def test_the_non_saturating_generator_hears_most_where_it_loses():
    """The gradients are -(1 - sigmoid(D)), and (sigmoid(D) - target) / 2; finite at any logit."""
    fake = torch.tensor([-200.0, -2.0, 0.0, 2.0, 200.0]).view(5, 1, 1, 1).requires_grad_()
    (generator,) = torch.autograd.grad(non_saturating_generator(fake).sum(), fake)
    torch.testing.assert_close(generator, -(1 - fake.sigmoid()))
    assert generator.flatten()[0] == -1
    real = fake.detach().clone().requires_grad_()
    loss = non_saturating_discriminator(real, fake)
    assert loss.isfinite().all()
    for_real, for_fake = torch.autograd.grad(loss.sum(), [real, fake])
    torch.testing.assert_close(for_real, (real.sigmoid() - 1) / 2)
    torch.testing.assert_close(for_fake, fake.sigmoid() / 2)


@pytest.mark.parametrize(
    "loss",
    [
        hinge_discriminator,
        non_saturating_discriminator,
        lambda _, fake: hinge_generator(fake),
        lambda _, fake: non_saturating_generator(fake),
    ],
)
def test_losses_are_per_picture_in_float32(loss, logits: tuple[torch.Tensor, torch.Tensor]):
    real, fake = (x.half() for x in logits)
    values = loss(real, fake)
    assert values.shape == (4,)
    assert values.dtype == torch.float32
    assert torch.equal(values, loss(real.float(), fake.float()))
    torch.testing.assert_close(loss(real[2:3], fake[2:3]), values[2:3])


def test_the_ramp_is_nothing_before_its_start_small_at_it_and_one_at_its_end():
    """The ancestors' was saturated when it switched on."""
    values = [ramp(step, 100, 50) for step in range(200)]
    assert values[:100] == [0.0] * 100
    assert values[100] == pytest.approx(1 / 50)
    assert values[149:] == [1.0] * 51
    steps = torch.tensor(values[99:150]).diff()
    torch.testing.assert_close(steps, torch.full((50,), 1 / 50), rtol=0, atol=1e-6)


def test_without_a_ramp_the_whole_weight_is_there_at_once():
    assert [ramp(step, 3, 0) for step in range(5)] == [0, 0, 0, 1, 1]
    assert ramp(0, 0, 0) == 1


def test_the_adaptive_weight_makes_both_losses_pull_equally():
    """By autograd through a small net: lambda times the second gradient is as long as the first, at the last layer."""
    torch.manual_seed(0)
    last = nn.Conv2d(4, 3, 3, padding=1)
    x_hat = last(torch.randn(2, 4, 6, 6))
    discriminator = nn.Conv2d(3, 1, 4)
    (grad_nll,) = torch.autograd.grad((x_hat - 1).abs().mean(), last.weight, retain_graph=True)
    (grad_adversarial,) = torch.autograd.grad(hinge_generator(discriminator(x_hat)).mean(), last.weight)
    weight = adaptive_weight(grad_nll, grad_adversarial, torch.tensor(1.0), 1e4)
    assert weight.shape == ()
    assert 0.01 < weight < 100
    torch.testing.assert_close((weight * grad_adversarial).norm(), grad_nll.norm())


@pytest.mark.parametrize(
    ("nll", "adversarial", "expected"),
    [
        (3.0, 2.0, 1.5),
        (3.0, 1e-9, 10.0),  # the cap
        (1e-9, 1.0, WEIGHT_MIN),  # the floor
        (0.0, 1.0, WEIGHT_MIN),
        (1.0, 0.0, 7.0),  # no adversarial gradient: the last value stays
        (0.0, 0.0, 7.0),
        (math.nan, 1.0, 7.0),
        (1.0, math.nan, 7.0),
        (math.inf, 1.0, 7.0),
        (math.inf, math.inf, 7.0),
        (1.0, math.inf, 7.0),  # not the floor
    ],
)
def test_the_adaptive_weight_is_bounded_and_never_a_non_number(nll: float, adversarial: float, expected: float):
    grads = [value * torch.tensor([0.6, -0.8]) for value in (nll, adversarial)]
    weight = adaptive_weight(*grads, torch.tensor(7.0), 10.0)
    assert weight.item() == pytest.approx(expected)
