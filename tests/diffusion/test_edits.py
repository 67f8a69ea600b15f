"""Edits on toys whose answers are known."""

import math

import pytest
import torch
from torch import Tensor

from flowergen.diffusion.edits import inpaint, invert, last_levels, noised
from flowergen.diffusion.samplers import SAMPLERS, ddim
from flowergen.diffusion.schedule import (
    CLEAN,
    DiscreteSchedule,
    Level,
    Schedule,
    StraightPath,
    cosine_alpha_bar,
    linear_alpha_bar,
    zero_terminal_snr,
)
from flowergen.diffusion.steps import last_of

SCHEDULES = {
    "linear": DiscreteSchedule(linear_alpha_bar(1000)),
    "cosine": DiscreteSchedule(cosine_alpha_bar(1000)),
    "zero SNR": DiscreteSchedule(zero_terminal_snr(linear_alpha_bar(1000))),
    "straight": StraightPath(1000, "uniform"),
}
SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def gaussian(std: float | Tensor, mean: float | Tensor = 0.0):
    """Predict for data N(mean, std^2): the posterior mean of x_0, by Bayes' rule."""

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        a, s = level.alpha, level.sigma
        x0_hat = (a * std**2 * x + s**2 * mean) / (a**2 * std**2 + s**2)
        return x0_hat, (x - a * x0_hat) / s

    return predict


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("strength", "num"), [(0.0, 0), (0.04, 0), (0.5, 5), (0.74, 7), (1.0, 10)])
def test_strength_is_the_fraction_of_the_steps(strength: float, num: int):
    levels = SCHEDULES["cosine"].levels(10)
    assert last_levels(levels, strength) == levels[10 - num :]
    assert last_levels(levels, strength)[-1] == CLEAN


@SCHEDULE
def test_at_strength_0_nothing_happens(schedule: Schedule):
    x0 = random(2, 3, 4, 4)
    levels = last_levels(schedule.levels(10), 0.0)
    x = noised(x0, levels[0], random(2, 3, 4, 4, seed=1))
    assert torch.equal(last_of(SAMPLERS["ddim"](gaussian(1.0), x, levels, lambda _: x), x), x0)


@SCHEDULE
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_what_is_left_of_a_picture_after_an_edit_is_what_the_noise_leaves(schedule: Schedule, strength: float):
    """For data N(0, 1) and the probability flow, x_0 becomes a x_0 + s eps: the correlation with the picture is a."""
    levels = last_levels(schedule.levels(200), strength)
    x0, eps = random(1, 1, 200, 200), random(1, 1, 200, 200, seed=1)
    x = noised(x0, levels[0], eps)
    edited = last_of(ddim(gaussian(1.0), x, levels, lambda _: x), x)
    norm = math.hypot(levels[0].alpha, levels[0].sigma)
    torch.testing.assert_close(edited, x / norm, atol=0.05, rtol=0)


@SCHEDULE
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_another_class_repaints_the_same_composition(schedule: Schedule, strength: float):
    """Of two independent channels, the first, N(m, 0.25^2), has another mean for another class; the second is N(0, 1).

    The probability flow of the new class, N(m', d^2), keeps the standardised x_t = a x_0 + s eps, so that the edit of x_0 is
    m' + k (x_0 - m') + sqrt(1 - k^2) d eps with k = a d / sqrt(a^2 d^2 + s^2). The first channel's mean becomes
    m' + k (m - m'), its standard deviation stays d, and the correlation of either channel with its original is k.
    """
    std, mean, new_mean = (torch.tensor(both).double().view(2, 1, 1) for both in ((0.25, 1.0), (-1.0, 0.0), (1.0, 0.0)))
    levels = last_levels(schedule.levels(200), strength)
    x0 = mean + std * random(1, 2, 200, 200)
    x = noised(x0, levels[0], random(1, 2, 200, 200, seed=1))
    edited = last_of(ddim(gaussian(std, new_mean), x, levels, lambda _: x), x)
    kept = [levels[0].alpha * d / math.hypot(levels[0].alpha * d, levels[0].sigma) for d in (0.25, 1.0)]
    assert edited[:, 0].mean().item() == pytest.approx(1.0 + kept[0] * (-1.0 - 1.0), abs=0.02)
    assert edited[:, 1].mean().item() == pytest.approx(0.0, abs=0.02)
    for channel in range(2):
        both = torch.stack((x0[0, channel].flatten(), edited[0, channel].flatten()))
        assert torch.corrcoef(both)[0, 1].item() == pytest.approx(kept[channel], abs=0.02)
        assert edited[0, channel].std().item() == pytest.approx((0.25, 1.0)[channel], abs=0.02)


@SCHEDULE
@pytest.mark.parametrize(("num_steps", "tolerance"), [(20, 1e-3), (500, 1e-6)])
def test_inverted_noise_is_sampled_back_to_the_picture(schedule: Schedule, num_steps: int, tolerance: float):
    """Also of data that are not standard normal, for which the noise is the standardised picture."""
    predict, levels = gaussian(0.5, mean=0.3), schedule.levels(num_steps)
    x0 = 0.3 + 0.5 * random(1, 2, 8, 8)
    noise = invert(predict, x0, levels)
    again = last_of(ddim(predict, noise, levels, lambda _: noise), noise)
    torch.testing.assert_close(again, x0, atol=tolerance, rtol=0)
    if num_steps == 500:
        expected = levels[0].alpha * 0.3 + math.hypot(levels[0].alpha * 0.5, levels[0].sigma) * (x0 - 0.3) / 0.5
        torch.testing.assert_close(noise, expected, atol=0.06, rtol=0)


def draws(shape: tuple[int, ...]):
    def noise(k: int) -> Tensor:
        assert k not in seen, "noise is used twice"
        seen.add(k)
        return random(*shape, seed=1000 + k)

    seen: set[int] = set()
    return noise, seen


@SCHEDULE
def test_inpainting_keeps_the_known_part_and_fits_the_unknown_one_to_it(schedule: Schedule):
    """Pixels of a pair are equal, so that the unknown one must become the known one, which ancestral sampling alone forgets."""

    def equal_pairs(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        a, s = level.alpha, level.sigma
        x0_hat = (a * x.mean(-1, keepdim=True) / (a**2 + s**2 / 2)).expand_as(x)  # of z ~ N(0, 1) seen twice
        return x0_hat, (x - a * x0_hat) / s

    shape, levels = (500, 1, 1, 2), schedule.levels(50)
    x0, known = random(*shape), torch.tensor([True, False]).view(1, 1, 1, 2)
    x0[..., 1] = 9.0  # not to be read
    correlations = []
    for num_resamplings in (1, 10):
        noise, seen = draws(shape)
        sample = last_of(inpaint(equal_pairs, noise(-1), levels, noise, x0, known, num_resamplings), x0)
        assert torch.equal(sample[..., 0], x0[..., 0])
        assert len(seen) > 50 * num_resamplings
        correlations.append(torch.corrcoef(sample.view(-1, 2).T)[0, 1].item())
    assert correlations[1] > 0.97
    assert correlations[1] > correlations[0]


@SCHEDULE
def test_where_nothing_is_known_it_samples_the_data(schedule: Schedule):
    """N(0.3, 0.5^2), whatever the picture."""
    shape = (1, 1, 100, 100)
    noise, _ = draws(shape)
    nothing = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    steps = inpaint(gaussian(0.5, mean=0.3), noise(-1), schedule.levels(500), noise, random(*shape), nothing, 2)
    sample = last_of(steps, noise(-2))
    assert sample.mean().item() == pytest.approx(0.3, abs=0.02)
    assert sample.std().item() == pytest.approx(0.5, abs=0.02)
