import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from flowergen.diffusion.objective import Objective, min_snr_weight, predictions, target
from flowergen.diffusion.schedule import DiscreteSchedule, StraightPath, linear_alpha_bar, zero_terminal_snr

OBJECTIVES: list[Objective] = ["eps", "v", "x0", "flow"]


def draws(num: int = 6) -> tuple[Tensor, Tensor]:
    """x_0 and eps, (num, 2, 3, 3) float64 each."""
    x0, eps = torch.randn(2, num, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, eps


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("step", [0, 1, 10, 19])
def test_the_right_answer_gives_back_picture_and_noise(objective: Objective, step: int):
    """At all levels of a sampler, those at the ends too, from all but no noise to (for eps all but) no signal."""
    levels = {
        "eps": DiscreteSchedule(linear_alpha_bar(1000)).levels(20),
        "flow": StraightPath(1000, "uniform").levels(20),
    }.get(objective, DiscreteSchedule(zero_terminal_snr(linear_alpha_bar(1000))).levels(20))
    level = levels[step]
    x0, eps = draws()
    alpha, sigma = x0.new_full((6, 1, 1, 1), level.alpha), x0.new_full((6, 1, 1, 1), level.sigma)
    answer = target(objective, x0, eps, alpha, sigma)
    x0_hat, eps_hat = predictions(objective, answer, level.alpha * x0 + level.sigma * eps, level.alpha, level.sigma)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(eps_hat, eps, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_predictions_always_add_up_to_the_input(objective: Objective):
    """alpha x0_hat + sigma eps_hat = x_t for any answer, also a wrong one."""
    x_t, answer = draws()
    alpha, sigma = (0.3, 0.7) if objective == "flow" else (0.6, 0.8)
    x0_hat, eps_hat = predictions(objective, answer, x_t, alpha, sigma)
    torch.testing.assert_close(alpha * x0_hat + sigma * eps_hat, x_t)


def test_each_picture_of_a_batch_has_its_own_level():
    """v of row i is made with alpha and sigma of row i."""
    x0, eps = draws(3)
    alpha, sigma = DiscreteSchedule(linear_alpha_bar(1000)).at(torch.tensor([5.0, 500.0, 995.0]))
    v = target("v", x0, eps, alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1))
    for i in range(3):
        torch.testing.assert_close(v[i], alpha[i].item() * eps[i] - sigma[i].item() * x0[i])


def test_v_equals_diffusers_velocity():
    x0, eps = (half.float() for half in draws())
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    alpha, sigma = DiscreteSchedule(linear_alpha_bar(1000)).at(t.float())
    v = target("v", x0, eps, alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1))
    torch.testing.assert_close(v, DDPMScheduler(1000).get_velocity(x0, eps, t), rtol=1e-5, atol=1e-5)


def test_flow_is_the_velocity_of_the_path():
    """d x_s / d s of x_s = (1 - s) x_0 + s eps, by a difference."""
    x0, eps = draws()
    one = torch.ones(6, 1, 1, 1)
    path = [(1 - s) * x0 + s * eps for s in (0.25, 0.75)]
    torch.testing.assert_close(target("flow", x0, eps, 0.5 * one, 0.5 * one), (path[1] - path[0]) / 0.5)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_one_error_of_x0_alike_whatever_is_predicted(gamma: float):
    """The same wrong x0_hat costs min(SNR, gamma) |x0_hat - x_0|^2 as an answer in eps, v or x_0, at every level."""
    x0, eps = draws()
    error = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha_bar = linear_alpha_bar(1000)[[0, 10, 150, 300, 700, 999]]
    alpha, sigma = alpha_bar.sqrt().view(-1, 1, 1, 1), (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    x_t, wrong = alpha * x0 + sigma * eps, x0 + error
    eps_of_wrong = (x_t - alpha * wrong) / sigma
    answers: dict[Objective, Tensor] = {"x0": wrong, "eps": eps_of_wrong, "v": alpha * eps_of_wrong - sigma * wrong}
    snr = alpha_bar / (1 - alpha_bar)
    assert snr.min() < gamma < snr.max()
    expected = snr.clamp(max=gamma) * error.square().mean((1, 2, 3))
    for objective, answer in answers.items():
        loss = (answer - target(objective, x0, eps, alpha, sigma)).square().mean((1, 2, 3))
        weight = min_snr_weight(objective, alpha.flatten(), sigma.flatten(), gamma)
        assert weight.shape == (6,)
        torch.testing.assert_close(weight * loss, expected, rtol=1e-7, atol=0)


def test_min_snr_without_signal_is_the_limit_and_not_a_nan():
    """0 for x_0 and v, 1 for eps; float32, where the SNR of the first step is finite as well."""
    alpha, sigma = DiscreteSchedule(zero_terminal_snr(linear_alpha_bar(1000))).at(torch.tensor([999.0, 0.0]))
    assert (alpha[0], sigma[0]) == (0, 1)
    for objective, limit in (("x0", 0.0), ("v", 0.0), ("eps", 1.0)):
        weight = min_snr_weight(objective, alpha, sigma, 5.0)
        assert weight[0] == limit
        assert weight.isfinite().all()
        assert weight[1] > 0
