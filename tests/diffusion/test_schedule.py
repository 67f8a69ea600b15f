import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from scipy import stats

from flowergen.diffusion.schedule import (
    CLEAN,
    DiscreteSchedule,
    Level,
    Schedule,
    StraightPath,
    cosine_alpha_bar,
    linear_alpha_bar,
    posterior_variance,
    zero_terminal_snr,
)

SCHEDULES: dict[str, torch.Tensor] = {
    "linear": linear_alpha_bar(1000),
    "cosine": cosine_alpha_bar(1000),
    "linear, zero SNR": zero_terminal_snr(linear_alpha_bar(1000)),
    "cosine, zero SNR": zero_terminal_snr(cosine_alpha_bar(1000)),
}
THEIRS = {
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linear, zero SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "cosine, zero SNR": {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
}
EVERY_SCHEDULE: list[Schedule] = [
    *(DiscreteSchedule(alpha_bar) for alpha_bar in SCHEDULES.values()),
    StraightPath(1000, "uniform"),
    StraightPath(1000, "logit_normal"),
]


def test_the_linear_schedule_is_that_of_ddpm():
    """The last alpha_bar of beta = 1e-4 to 0.02 over 1000 steps, worked out apart from this code, in float64."""
    alpha_bar = linear_alpha_bar(1000)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4, rel=1e-15)
    assert alpha_bar[-1].item() == pytest.approx(4.0358297653756754e-05, rel=1e-12)


@pytest.mark.parametrize(
    ("t", "variance"), [(0, 0.0), (487, 0.009791571985690044), (999, 0.01999998352656061)], ids=["first", "middle", "last"]
)
def test_posterior_variance_of_neighbouring_steps_is_that_of_ddpm(t: int, variance: float):
    """0-based: the step from t = 0 leads to the clean end, and adds no noise."""
    levels = DiscreteSchedule(linear_alpha_bar(1000)).levels(1000)
    assert levels[999 - t].t == t
    assert posterior_variance(levels[999 - t], levels[1000 - t]) == pytest.approx(variance, rel=1e-12)


def test_posterior_variance_follows_from_bayes_over_any_jump():
    """Precisions add: of x_s given x_0, and of x_s given x_t."""
    levels = DiscreteSchedule(cosine_alpha_bar(1000)).levels(7)
    for now, then in pairwise(levels[:-1]):
        a = now.alpha / then.alpha  # x_t = a x_s + noise
        of_the_jump = now.sigma**2 - a**2 * then.sigma**2
        assert posterior_variance(now, then) == pytest.approx(1 / (1 / then.sigma**2 + a**2 / of_the_jump), rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_equals_diffusers(name: str):
    """Theirs is float32, which costs them a relative 1e-5; the cosine's last factor, 1 - 0.999, another 6e-5."""
    theirs = DDPMScheduler(num_train_timesteps=1000, **THEIRS[name]).alphas_cumprod.double()
    torch.testing.assert_close(SCHEDULES[name], theirs, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_equals_diffusers_in_float64(name: str):
    """Their function of the same betas, in float64: the first step stays, the last is all noise, all still fall."""
    alpha_bar = SCHEDULES[name]
    beta = 1 - alpha_bar / torch.cat((torch.ones(1).double(), alpha_bar[:-1]))
    rescaled = zero_terminal_snr(alpha_bar)
    torch.testing.assert_close(rescaled, (1 - rescale_zero_terminal_snr(beta)).cumprod(0), rtol=1e-9, atol=1e-15)
    assert rescaled[0].item() == pytest.approx(alpha_bar[0].item(), rel=1e-15)
    assert rescaled[-1] == 0
    assert (rescaled.diff() < 0).all()


@pytest.mark.parametrize("num_timesteps", [10, 100, 250, 4000])
def test_other_numbers_of_steps_end_in_as_little_signal(num_timesteps: int):
    """The linear one's betas are scaled with 1000 / T, and none of them passes 0.999; the cosine has no step without signal."""
    linear, cosine = linear_alpha_bar(num_timesteps), cosine_alpha_bar(num_timesteps)
    for alpha_bar in (linear, cosine):
        assert alpha_bar.shape == (num_timesteps,)
        assert (alpha_bar.diff() < 0).all()
        assert 0 < alpha_bar[-1] < 1e-4
    if num_timesteps >= 100:
        beta = np.linspace(0.1, 20, num_timesteps) / num_timesteps
        np.testing.assert_allclose(linear.numpy(), np.cumprod(1 - beta), rtol=1e-10)


def test_training_times_hit_every_step_equally():
    """An even grid of u has exactly ten members for each step."""
    schedule = DiscreteSchedule(linear_alpha_bar(1000))
    t = schedule.times((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    assert t.dtype == torch.float32
    assert torch.equal(t.long().bincount(), torch.full((1000,), 10))
    assert torch.equal(t, t.round())


@pytest.mark.parametrize("num_timesteps", [1, 3, 1000, 1023, 4000])
def test_training_times_never_reach_the_end(num_timesteps: int):
    """The largest float32 below 1 gives the last step, and 0 the first."""
    u = torch.tensor([0.0, 1 - 2**-24])
    assert u[1] < 1
    assert DiscreteSchedule(cosine_alpha_bar(num_timesteps)).times(u).tolist() == [0.0, num_timesteps - 1]
    straight = StraightPath(num_timesteps, "uniform").times(u)
    assert straight[0] == 0
    assert num_timesteps * (1 - 1e-6) < straight[1] < num_timesteps
    logit_normal = StraightPath(num_timesteps, "logit_normal").times(u)
    assert logit_normal[0] == 0
    assert logit_normal[1] < num_timesteps


def test_logit_normal_times_have_the_quantiles_of_scipy():
    """logit(t / T) ~ N(0, 1): its quantile function is the logistic function of the normal one."""
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    t = StraightPath(1000, "logit_normal").times(u)
    quantiles = 1 / (1 + np.exp(-stats.norm.ppf(u.numpy())))
    np.testing.assert_allclose(t.numpy() / 1000, quantiles, rtol=1e-6)
    assert t.dtype == torch.float32
    rng = np.random.default_rng(0)
    drawn = StraightPath(1000, "logit_normal").times(torch.from_numpy(rng.random(5000))).double().numpy() / 1000
    assert stats.kstest(np.log(drawn / (1 - drawn)), "norm").pvalue > 0.01


def test_uniform_times_of_the_straight_path_are_u():
    u = torch.linspace(0, 0.999, 77)
    torch.testing.assert_close(StraightPath(1000, "uniform").times(u), 1000 * u, rtol=1e-7, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20, 30, 50, 250, 999, 1000])
def test_sampling_times_are_diffusers_trailing_ones(num_steps: int):
    scheduler = DDPMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    levels = DiscreteSchedule(linear_alpha_bar(1000)).levels(num_steps)
    assert [level.t for level in levels[:-1]] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=[*SCHEDULES, "straight", "straight, logit-normal"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 48, 333, 1000])
def test_levels_fall_from_the_noisiest_to_the_clean_end(schedule: Schedule, num_steps: int):
    """As many as asked for, no two alike, and the network has been trained at each of them."""
    levels = schedule.levels(num_steps)
    assert len(levels) == num_steps + 1
    assert levels[-1] is CLEAN
    assert (CLEAN.alpha, CLEAN.sigma, CLEAN.log_snr) == (1.0, 0.0, math.inf)
    for now, then in pairwise(levels[:-1]):
        assert now.t > then.t
    for now, then in pairwise(levels):
        assert now.sigma > then.sigma
        assert now.alpha < then.alpha
        assert now.log_snr < then.log_snr
    last = schedule.num_timesteps - 1 if isinstance(schedule, DiscreteSchedule) else schedule.num_timesteps
    assert levels[0].t == last
    alpha, sigma = schedule.at(torch.tensor([level.t for level in levels[:-1]]))
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha, torch.tensor([level.alpha for level in levels[:-1]]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sigma, torch.tensor([level.sigma for level in levels[:-1]]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 48, 100])
def test_levels_are_spaced_evenly(num_steps: int):
    """From the clean end, which is one below step 0, no gap differs from another by more than the rounding."""
    steps = [level.t for level in DiscreteSchedule(linear_alpha_bar(1000)).levels(num_steps)[:-1]]
    gaps = -np.diff([*steps, -1.0])
    assert gaps.max() - gaps.min() <= 1
    fractions = [level.sigma for level in StraightPath(1000, "uniform").levels(num_steps)]
    np.testing.assert_allclose(fractions, np.linspace(1, 0, num_steps + 1), atol=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_discrete_noise_preserves_the_variance(name: str):
    """alpha^2 + sigma^2 = 1, in training and sampling, and alpha^2 is alpha_bar of the very step."""
    schedule = DiscreteSchedule(SCHEDULES[name])
    t = torch.arange(1000).float()
    alpha, sigma = schedule.at(t)
    torch.testing.assert_close(alpha.double() ** 2 + sigma.double() ** 2, torch.ones(1000).double(), rtol=0, atol=3e-7)
    torch.testing.assert_close(alpha.double() ** 2, SCHEDULES[name], rtol=3e-7, atol=0)
    for level in schedule.levels(1000):
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-14)


def test_the_straight_path_is_straight():
    """alpha + sigma = 1 and sigma = t / T, in training and sampling, and T steps of sampling are diffusers' sigmas."""
    schedule = StraightPath(1000, "uniform")
    t = torch.linspace(0, 999.5, 123)
    alpha, sigma = schedule.at(t)
    torch.testing.assert_close(alpha + sigma, torch.ones(123))
    torch.testing.assert_close(sigma, t / 1000)
    levels = schedule.levels(1000)
    assert all(level.alpha + level.sigma == 1 for level in levels)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(1000)
    np.testing.assert_allclose([level.sigma for level in levels], scheduler.sigmas.numpy(), atol=1e-7)
    np.testing.assert_allclose([level.t for level in levels[:-1]], scheduler.timesteps.numpy(), rtol=1e-6)


def test_log_snr_is_half_the_logarithm_of_the_signal_to_noise_ratio():
    """Infinite at both ends, not an error."""
    assert Level(3.0, 0.6, 0.8).log_snr == pytest.approx(0.5 * math.log(0.36 / 0.64))
    assert Level(999.0, 0.0, 1.0).log_snr == -math.inf
    assert DiscreteSchedule(SCHEDULES["linear, zero SNR"]).levels(5)[0] == Level(999.0, 0.0, 1.0)


@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_more_steps_than_there_are_levels_are_refused(num_steps: int):
    with pytest.raises(ValueError, match=f"{num_steps} steps.*1 to 1000"):
        DiscreteSchedule(linear_alpha_bar(1000)).levels(num_steps)


@pytest.mark.parametrize("num_steps", [-1, 0])
def test_the_straight_path_has_any_number_of_steps_but_none(num_steps: int):
    schedule = StraightPath(10, "uniform")
    assert len(schedule.levels(1001)) == 1002
    with pytest.raises(ValueError, match=f"{num_steps} steps"):
        schedule.levels(num_steps)
