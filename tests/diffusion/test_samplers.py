import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from torch import Tensor

from flowergen.diffusion.objective import Objective, predictions
from flowergen.diffusion.samplers.ddim import ddim
from flowergen.diffusion.samplers.ddpm import ddpm
from flowergen.diffusion.samplers.dpm_solver import dpmpp_2m
from flowergen.diffusion.samplers.euler import euler
from flowergen.diffusion.samplers.heun import heun
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

Predict = Callable[[Tensor, Level], tuple[Tensor, Tensor]]

LINEAR = DiscreteSchedule(linear_alpha_bar(1000))
COSINE = DiscreteSchedule(cosine_alpha_bar(1000))
ZERO_SNR = DiscreteSchedule(zero_terminal_snr(linear_alpha_bar(1000)))
STRAIGHT = StraightPath(1000, "uniform")
SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "ancestral ddim": partial(ddim, eta=1.0), "dpmpp_2m": dpmpp_2m}
FLOW_SAMPLERS = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}
TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}  # of diffusers

SHAPE = (3, 4, 2, 2)
MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2


def network(x: Tensor, t: float) -> Tensor:
    """A smooth function of picture and time that no step of a sampler is exact for."""
    return torch.tanh(torch.einsum("dc,nchw->ndhw", MIX.to(x.dtype), x)) + math.sin(t / 150)


def predictor(objective: Objective) -> Predict:
    return lambda x, level: predictions(objective, network(x, level.t), x, level.alpha, level.sigma)


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def draws(num: int) -> list[Tensor]:
    """The noise of each step; diffusers draws the same from a generator with this seed."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(num)]


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"a deterministic sampler asks for no noise, but did in step {step}")


def in_float64(scheduler: DDIMScheduler | DDPMScheduler, schedule: DiscreteSchedule) -> None:
    """Their own alpha_bar is float32; in test_schedule.py it is held against ours."""
    scheduler.alphas_cumprod = schedule.alpha_bar


# -- against diffusers, step by step


@pytest.mark.parametrize("objective", ["eps", "v", "x0"])
@pytest.mark.parametrize(("num_steps", "eta"), [(1, 0.0), (4, 0.0), (50, 0.0), (50, 0.3), (20, 1.0), (1000, 0.7)])
def test_ddim_walks_with_diffusers(objective: Objective, num_steps: int, eta: float):
    """Every x and every x0_hat, in float64. Their step back is T // N, so that N must divide T to compare."""
    scheduler = DDIMScheduler(
        1000, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", prediction_type=TYPES[objective]
    )
    in_float64(scheduler, LINEAR)
    scheduler.set_timesteps(num_steps)
    noise, theirs = draws(num_steps), start()
    walk = ddim(predictor(objective), start(), LINEAR.levels(num_steps), noise.__getitem__, eta)
    for step, (t, (x, x0_hat)) in enumerate(zip(scheduler.timesteps.tolist(), walk, strict=True)):
        result = scheduler.step(network(theirs, t), t, theirs, eta=eta, variance_noise=noise[step])
        theirs = result.prev_sample
        torch.testing.assert_close(x0_hat, result.pred_original_sample, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(x, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("objective", ["eps", "v", "x0"])
@pytest.mark.parametrize("num_steps", [1, 7, 30, 50, 1000])
def test_ddpm_walks_with_diffusers(objective: Objective, num_steps: int):
    """Any number of steps, in float64. Theirs adds noise in the last step too, with a variance clamped at 1e-20."""
    scheduler = DDPMScheduler(
        1000, clip_sample=False, variance_type="fixed_small", timestep_spacing="trailing", prediction_type=TYPES[objective]
    )
    in_float64(scheduler, LINEAR)
    scheduler.set_timesteps(num_steps)
    generator, theirs = torch.Generator().manual_seed(2), start()
    walk = ddpm(predictor(objective), start(), LINEAR.levels(num_steps), draws(num_steps).__getitem__)
    for t, (x, x0_hat) in zip(scheduler.timesteps.tolist(), walk, strict=True):
        result = scheduler.step(network(theirs, t), t, theirs, generator=generator)
        theirs = result.prev_sample
        torch.testing.assert_close(x0_hat, result.pred_original_sample, rtol=1e-7, atol=2e-9)
        torch.testing.assert_close(x, theirs, rtol=1e-7, atol=2e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs hands a tensor to numpy
@pytest.mark.parametrize("objective", ["eps", "v"])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 25, 100])
def test_dpmpp_2m_walks_with_diffusers(objective: Objective, schedule: DiscreteSchedule, num_steps: int):
    """Second order, of first order at both ends; their sigmas and samples are rounded to float32 in every step."""
    scheduler = DPMSolverMultistepScheduler(
        1000,
        solver_order=2,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        prediction_type=TYPES[objective],
    )
    scheduler.alphas_cumprod = schedule.alpha_bar
    scheduler.set_timesteps(num_steps)
    theirs = start()
    walk = dpmpp_2m(predictor(objective), start(), schedule.levels(num_steps), no_noise)
    for t, (x, x0_hat) in zip(scheduler.timesteps.tolist(), walk, strict=True):
        theirs = scheduler.step(network(theirs, t), t, theirs).prev_sample
        scale = max(1.0, x0_hat.abs().max().item())  # eps / alpha is huge at the noisy end of the cosine
        torch.testing.assert_close(x, theirs, rtol=1e-5, atol=3e-6 * scale)


@pytest.mark.parametrize("objective", ["v", "x0"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral ddim", "ddpm"])
def test_zero_terminal_snr_walks_with_diffusers(objective: Objective, sampler: str):
    """From pure noise. (Their DPM-Solver takes alpha_bar = 2^-24 for 0, and a step of second order from there: no match.)"""
    kind = DDPMScheduler if sampler == "ddpm" else DDIMScheduler
    scheduler = kind(
        1000, clip_sample=False, timestep_spacing="trailing", prediction_type=TYPES[objective], rescale_betas_zero_snr=True
    )
    in_float64(scheduler, ZERO_SNR)
    scheduler.set_timesteps(10)
    generator, noise, theirs = torch.Generator().manual_seed(2), draws(10), start()
    walk = SAMPLERS[sampler](predictor(objective), start(), ZERO_SNR.levels(10), noise.__getitem__)
    for step, (t, (x, _)) in enumerate(zip(scheduler.timesteps.tolist(), walk, strict=True)):
        own = {"eta": float(sampler != "ddim"), "variance_noise": noise[step]}
        own = {"generator": generator} if sampler == "ddpm" else own
        theirs = scheduler.step(network(theirs, t), t, theirs, **own).prev_sample
        torch.testing.assert_close(x, theirs, rtol=1e-8, atol=2e-9)


@pytest.mark.parametrize("num_steps", [1, 3, 20, 100])
def test_euler_walks_with_diffusers(num_steps: int):
    """With our sigmas handed to theirs, whose own end at 1 / T instead of in even steps; theirs computes in float32."""
    levels = STRAIGHT.levels(num_steps)
    scheduler = FlowMatchEulerDiscreteScheduler(1000)
    scheduler.set_timesteps(sigmas=[level.sigma for level in levels[:-1]])
    theirs = start(torch.float32)
    for t, (x, x0_hat) in zip(
        scheduler.timesteps, euler(predictor("flow"), start(torch.float32), levels, no_noise), strict=True
    ):
        velocity = network(theirs, t.item())
        torch.testing.assert_close(x0_hat, theirs - t / 1000 * velocity, rtol=1e-5, atol=1e-5)
        theirs = scheduler.step(velocity, t, theirs).prev_sample
        torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_heun_walks_with_diffusers(num_steps: int):
    """At their sigmas, 1 to 1 / T, as theirs can be given none; two of their steps are one of ours, but for the last.

    T = 20: they divide a difference of float32 numbers by sigma, which at 1 / 1000 costs them the fourth digit.
    """
    scheduler = FlowMatchHeunDiscreteScheduler(20)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.unique().flip(0).tolist()
    assert len(sigmas) == num_steps + 1
    levels = [*(Level(20 * sigma, 1 - sigma, sigma) for sigma in sigmas[:-1]), CLEAN]
    theirs, visited = start(torch.float32), []
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t.item()), t, theirs).prev_sample
        visited.append(theirs)
    ours = [x for x, _ in heun(predictor("flow"), start(torch.float32), levels, no_noise)]
    both = [*visited[1::2], visited[-1]]
    assert len(ours) == len(both) == num_steps
    for x, expected in zip(ours, both, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


# -- against each other


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, ZERO_SNR], ids=["linear", "cosine", "zero SNR"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 1000])
def test_ddim_with_eta_1_is_ddpm(schedule: DiscreteSchedule, num_steps: int):
    """With the same noise, at every step, though one is written with eps_hat and the other with x_t."""
    levels, noise = schedule.levels(num_steps), draws(num_steps)
    walks = (
        ddim(predictor("v"), start(), levels, noise.__getitem__, eta=1.0),
        ddpm(predictor("v"), start(), levels, noise.__getitem__),
    )
    for (x, x0_hat), (expected, expected_x0_hat) in zip(*walks, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x0_hat, expected_x0_hat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 33])
def test_euler_is_deterministic_ddim_on_the_straight_path(num_steps: int):
    levels = STRAIGHT.levels(num_steps)
    walks = (euler(predictor("flow"), start(), levels, no_noise), ddim(predictor("flow"), start(), levels, no_noise))
    for (x, x0_hat), (expected, expected_x0_hat) in zip(*walks, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(x0_hat, expected_x0_hat, rtol=1e-12, atol=1e-12)


def test_dpmpp_2m_starts_and_ends_as_ddim():
    """Both of its ends are of first order, and the middle is not."""
    levels = LINEAR.levels(2)
    two = [x for x, _ in dpmpp_2m(predictor("eps"), start(), levels, no_noise)]
    for x, expected in zip(two, (x for x, _ in ddim(predictor("eps"), start(), levels, no_noise)), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    levels = LINEAR.levels(3)
    three = [x for x, _ in dpmpp_2m(predictor("v"), start(), levels, no_noise)]
    others = [x for x, _ in ddim(predictor("v"), start(), levels, no_noise)]
    torch.testing.assert_close(three[0], others[0], rtol=1e-9, atol=1e-9)
    assert (three[1] - others[1]).abs().max() > 1e-3


# -- pictures that are normal, x_0 ~ N(0, s^2), for which all is known


def ideal(s: float) -> Predict:
    """E[x_0 | x_t] and E[eps | x_t]: each sampler's step is then a number times x, plus noise."""

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        variance = level.alpha**2 * s**2 + level.sigma**2  # of x_t
        return level.alpha * s**2 / variance * x, level.sigma / variance * x

    return predict


def last(walk: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    *_, (x, _) = walk
    return x


def output_variance(sampler: Callable, s: float, levels: Sequence[Level]) -> float:
    """Of x_0 from x ~ N(0, 1): the squares of what each draw contributes.

    Row 0 starts at 1 and gets no noise; row k + 1 starts at 0 and gets noise in step k alone.
    """
    each = torch.eye(len(levels), dtype=torch.float64)
    x = each[0].view(-1, 1, 1, 1)
    return last(sampler(ideal(s), x, levels, lambda step: each[step + 1].view(-1, 1, 1, 1))).square().sum().item()


@pytest.mark.parametrize(
    "sampler", [ddpm, *(partial(ddim, eta=eta) for eta in (0.0, 0.5, 1.0))], ids=["ddpm", "eta 0", "eta 0.5", "eta 1"]
)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE, ZERO_SNR, STRAIGHT], ids=["linear", "cosine", "zero SNR", "straight"])
@pytest.mark.parametrize("num_steps", [2, 10, 50])
def test_where_x0_is_known_every_level_has_its_own_noise(schedule: Schedule, sampler: Callable, num_steps: int):
    """From x_t ~ N(alpha_t x_0, sigma_t^2) to x_s ~ N(alpha_s x_0, sigma_s^2), however much of the noise is fresh.

    Row 0 follows the mean, and each other row what one draw adds to it.
    """
    levels, x0 = schedule.levels(num_steps), torch.zeros(num_steps + 2, 1, 1, 1, dtype=torch.float64)
    x0[0] = 0.7
    each = torch.eye(num_steps + 2, dtype=torch.float64)[:, :, None, None, None]
    x = levels[0].alpha * x0 + levels[0].sigma * each[1]

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return x0, (x - level.alpha * x0) / level.sigma

    walk = sampler(predict, x, levels, lambda step: each[step + 2])
    for (after, _), level in zip(walk, levels[1:], strict=True):
        assert after[0].item() == pytest.approx(level.alpha * 0.7, abs=1e-12)
        assert after[1:].square().sum().item() == pytest.approx(level.sigma**2, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_the_variance_of_the_ancestral_chain_is_that_of_the_textbook(s: float):
    """All 1000 steps in the betas of DDPM: x <- (x - beta / sqrt(1 - ab) eps) / sqrt(1 - beta) + sqrt(beta~) z."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    variance = 1.0
    for t in reversed(range(1000)):
        eps = np.sqrt(1 - alpha_bar[t]) / (alpha_bar[t] * s**2 + 1 - alpha_bar[t])
        factor = (1 - beta[t] / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(1 - beta[t])
        variance = factor**2 * variance + (1 - before[t]) / (1 - alpha_bar[t]) * beta[t]
    levels = LINEAR.levels(1000)
    assert output_variance(ddpm, s, levels) == pytest.approx(variance, rel=1e-9)
    assert output_variance(partial(ddim, eta=1.0), s, levels) == pytest.approx(variance, rel=1e-9)
    assert np.sqrt(variance) == pytest.approx(s, rel=0.02)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("num_steps", [1, 5, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_variance_of_ddim_is_that_of_its_paper(s: float, num_steps: int, eta: float):
    """Equations 12 and 16 in alpha_bar, over any jumps; with eta = 1 the chain of DDPM over the same ones."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    steps = np.arange(num_steps, 0, -1) * 1000 // num_steps - 1
    variance = 1.0
    for ab, ab_then in zip(alpha_bar[steps], np.append(alpha_bar[steps[1:]], 1.0), strict=True):
        eps = np.sqrt(1 - ab) / (ab * s**2 + 1 - ab)
        x0 = (1 - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        fresh = eta**2 * (1 - ab_then) / (1 - ab) * (1 - ab / ab_then)
        factor = np.sqrt(ab_then) * x0 + np.sqrt(1 - ab_then - fresh) * eps
        variance = factor**2 * variance + fresh
    levels = LINEAR.levels(num_steps)
    assert output_variance(partial(ddim, eta=eta), s, levels) == pytest.approx(variance, rel=1e-9)
    if eta == 1:
        assert output_variance(ddpm, s, levels) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_the_variance_of_dpmpp_2m_is_that_of_its_paper(s: float):
    """Algorithm 2 in lambda, by a recursion on two numbers: what multiplies x now, and the last x0_hat."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    steps = np.arange(20, 0, -1) * 50 - 1
    alpha, sigma = np.sqrt(alpha_bar[steps]), np.sqrt(1 - alpha_bar[steps])
    lam = np.log(alpha) - np.log(sigma)
    factor, data = 1.0, []
    for i in range(20):
        data.append(alpha[i] * s**2 / (alpha[i] ** 2 * s**2 + sigma[i] ** 2) * factor)
        if i == 19:
            factor = data[-1]
            continue
        h, r = lam[i + 1] - lam[i], (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
        combined = data[i] if i == 0 else (1 + 1 / (2 * r)) * data[i] - 1 / (2 * r) * data[i - 1]
        factor = sigma[i + 1] / sigma[i] * factor - alpha[i + 1] * (np.exp(-h) - 1) * combined
    assert output_variance(dpmpp_2m, s, LINEAR.levels(20)) == pytest.approx(factor**2, rel=1e-9)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_the_variance_of_euler_and_heun_is_that_of_their_rules(s: float):
    """On dx/ds = a(s) x with a = (s - (1 - s) S) / ((1 - s)^2 S + s^2), S the variance of x_0."""

    def a(at: float) -> float:
        return (at - (1 - at) * s**2) / ((1 - at) ** 2 * s**2 + at**2)

    grid = np.linspace(1, 0, 13)
    one, two = 1.0, 1.0
    for now, then in pairwise(grid.tolist()):
        ds = then - now
        one *= 1 + ds * a(now)
        two *= 1 + ds * a(now) if then == 0 else 1 + ds / 2 * (a(now) + a(then) * (1 + ds * a(now)))
    assert output_variance(euler, s, STRAIGHT.levels(12)) == pytest.approx(one**2, rel=1e-9)
    assert output_variance(ddim, s, STRAIGHT.levels(12)) == pytest.approx(one**2, rel=1e-9)
    assert output_variance(heun, s, STRAIGHT.levels(12)) == pytest.approx(two**2, rel=1e-9)


@pytest.mark.parametrize("s", [0.3, 2.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_steps_give_pictures_of_the_right_spread(sampler: str, s: float):
    """Noise of variance 1 comes out with that of the pictures, from the schedule that ends in noise alone."""
    assert output_variance(SAMPLERS[sampler], s, ZERO_SNR.levels(1000)) == pytest.approx(s**2, rel=0.03)


@pytest.mark.parametrize("s", [0.3, 2.5])
@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_many_steps_along_the_flow_give_pictures_of_the_right_spread(sampler: str, s: float):
    assert output_variance(FLOW_SAMPLERS[sampler], s, STRAIGHT.levels(1000)) == pytest.approx(s**2, rel=0.03)


def arc(num_steps: int) -> list[Level]:
    """Levels of constant variance without an end in pure noise or a clean picture: angles from 1.4 to 0.2."""
    angles = np.linspace(1.4, 0.2, num_steps + 1)
    return [Level(angle, math.cos(angle), math.sin(angle)) for angle in angles.tolist()]


def error(sampler: Callable, s: float, levels: Sequence[Level]) -> float:
    """Where x = 1 ends, against the exact flow, which keeps x / sqrt(Var x_t)."""
    end = last(sampler(ideal(s), torch.ones(1, 1, 1, 1, dtype=torch.float64), levels, no_noise)).item()
    spreads = [math.hypot(level.alpha * s, level.sigma) for level in (levels[0], levels[-1])]
    return abs(end - spreads[1] / spreads[0])


@pytest.mark.parametrize("s", [0.5, 2.0])
@pytest.mark.parametrize(
    ("sampler", "family", "order"),
    [
        (ddim, arc, 1),
        (dpmpp_2m, arc, 2),
        (ddim, STRAIGHT.levels, 1),
        (euler, STRAIGHT.levels, 1),
        (heun, STRAIGHT.levels, 2),
    ],
    ids=["ddim, arc", "dpmpp_2m, arc", "ddim, straight", "euler, straight", "heun, straight"],
)
def test_twice_the_steps_divide_the_error_by_two_to_the_order(
    sampler: Callable, family: Callable[[int], list[Level]], order: int, s: float
):
    """On the straight path both ends, pure noise and a clean picture, are among the steps.

    Not so for dpmpp_2m, whose steps are in log(alpha / sigma): it goes to infinity there, and the order is 2 but for a
    logarithm.
    """
    errors = [error(sampler, s, family(num_steps)) for num_steps in (80, 160, 320)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


# -- the ends, and what is asked of whom


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pure_noise_is_a_level_like_any_other(sampler: str, num_steps: int):
    """alpha = 0 in the first step: nothing is divided by it, and a single step is x0_hat itself."""
    levels = ZERO_SNR.levels(num_steps)
    walk = list(SAMPLERS[sampler](predictor("v"), start(), levels, draws(num_steps).__getitem__))
    assert all(x.isfinite().all() and x0_hat.isfinite().all() for x, x0_hat in walk)
    torch.testing.assert_close(walk[0][1], -network(start(), 999.0))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_the_straight_path_starts_in_pure_noise(sampler: str, num_steps: int):
    walk = list(FLOW_SAMPLERS[sampler](predictor("flow"), start(), STRAIGHT.levels(num_steps), no_noise))
    assert all(x.isfinite().all() and x0_hat.isfinite().all() for x, x0_hat in walk)
    torch.testing.assert_close(walk[0][1], start() - network(start(), 1000.0))


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [
        *((sampler, LINEAR.levels(6)) for sampler in SAMPLERS.values()),
        *((sampler, STRAIGHT.levels(6)) for sampler in FLOW_SAMPLERS.values()),
    ],
    ids=[*SAMPLERS, *(f"{sampler}, straight" for sampler in FLOW_SAMPLERS)],
)
def test_one_step_for_each_level_but_the_last(sampler: Callable, levels: list[Level]):
    """x0_hat is what the network said of the x before, in order; the clean end asks nobody, and ends in x0_hat.

    One question a step; Heun's rule asks twice, but in the last.
    """
    asked: list[tuple[Level, Tensor]] = []

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        asked.append((level, x))
        return predictions("v" if levels[0].alpha else "flow", network(x, level.t), x, level.alpha, level.sigma)

    walk = list(sampler(predict, start(), levels, draws(6).__getitem__))
    assert len(walk) == len(levels) - 1 == 6
    assert CLEAN not in [level for level, _ in asked]
    if sampler is heun:
        assert [level for level, _ in asked] == [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
        assert len(asked) == 11
        questions = [asked[0], *asked[2::2]]
    else:
        questions = list(asked)
    assert [level for level, _ in questions] == levels[:-1]
    befores = [start(), *(x for x, _ in walk[:-1])]
    for (level, x), before, (_, x0_hat) in zip(questions, befores, walk, strict=True):
        torch.testing.assert_close(x, before, rtol=0, atol=0)
        torch.testing.assert_close(x0_hat, predict(before, level)[0], rtol=0, atol=0)
    torch.testing.assert_close(walk[-1][0], walk[-1][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ancestral ddim"])
def test_noise_is_asked_for_by_the_number_of_the_step(sampler: str):
    """Once a step and in order; the last one, to the clean end, takes none."""
    steps: list[int] = []

    def noise(step: int) -> Tensor:
        steps.append(step)
        return torch.zeros(SHAPE, dtype=torch.float64)

    list(SAMPLERS[sampler](predictor("v"), start(), LINEAR.levels(6), noise))
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), euler, heun], ids=[*SAMPLERS, "euler", "heun"])
def test_a_sampler_keeps_float32_and_leaves_its_input_alone(sampler: Callable):
    x = start(torch.float32)
    levels = STRAIGHT.levels(4) if sampler in (euler, heun) else LINEAR.levels(4)
    noise = [draw.float() for draw in draws(4)]
    for after, x0_hat in sampler(predictor("flow" if sampler in (euler, heun) else "v"), x, levels, noise.__getitem__):
        assert after.dtype == x0_hat.dtype == torch.float32
    assert torch.equal(x, start(torch.float32))
