"""How much of the picture, and how much noise, is left at each time: x_t = alpha_t x_0 + sigma_t eps."""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """A noise level on the way of a sampler.

    Attributes:
        t: time in [0, T], what the network is told.
        alpha, sigma: of x_t = alpha x_0 + sigma eps.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at both ends."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


CLEAN = Level(0.0, 1.0, 0.0)  # where every sampler ends; the network is not asked there


class Schedule(ABC):
    """A family of noise levels over times t in [0, T).

    Args:
        num_timesteps: T.
    """

    def __init__(self, num_timesteps: int):
        self.num_timesteps = num_timesteps

    @abstractmethod
    def times(self, u: Tensor) -> Tensor:
        """(N,) uniform in [0, 1) -> (N,) float32 times to train at."""

    @abstractmethod
    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) times -> alpha and sigma, each (N,) float32."""

    @abstractmethod
    def levels(self, num_steps: int) -> list[Level]:
        """The num_steps + 1 levels of a sampler, the noisiest first, ``CLEAN`` last.

        Raises:
            ValueError: there are not as many.
        """


class DiscreteSchedule(Schedule):
    """Variance-preserving noise in T discrete steps: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).

    Source: DDPM (Ho et al. 2020, arXiv:2006.11239), equation 4, t from 0.

    Args:
        alpha_bar: (T,) float64, falling.
    """

    def __init__(self, alpha_bar: Tensor):
        super().__init__(len(alpha_bar))
        self.alpha_bar = alpha_bar
        self._copies = {alpha_bar.device: alpha_bar}  # a copy at every step would wait for the GPU

    def times(self, u: Tensor) -> Tensor:
        """Each of the T steps is equally likely."""
        return (u * self.num_timesteps).floor().clamp(max=self.num_timesteps - 1).float()  # in float32, u T may round up to T

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Looked up."""
        if t.device.type == "mps":  # which has no float64
            alpha, sigma = self.at(t.cpu())
            return alpha.to(t.device), sigma.to(t.device)
        if t.device not in self._copies:
            self._copies[t.device] = self.alpha_bar.to(t.device)
        alpha_bar = self._copies[t.device][t.long()]
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def levels(self, num_steps: int) -> list[Level]:
        """Evenly spaced from the last step downwards ("trailing", Lin et al. 2024, arXiv:2305.08891, table 2).

        So the first of them is the one with the most noise, as the pure noise that a sampler starts from demands.
        """
        if not 1 <= num_steps <= self.num_timesteps:
            raise ValueError(f"{num_steps} steps: this model has noise levels for 1 to {self.num_timesteps}")
        steps = torch.arange(num_steps, 0, -1, dtype=torch.float64) * self.num_timesteps / num_steps
        steps = steps.round().long() - 1  # (num_steps,)
        alpha_bar = self.alpha_bar[steps]
        rows = zip(steps.tolist(), alpha_bar.sqrt().tolist(), (1 - alpha_bar).sqrt().tolist(), strict=True)
        return [*(Level(float(t), alpha, sigma) for t, alpha, sigma in rows), CLEAN]


class StraightPath(Schedule):
    """The straight path of flow matching, x_t = (1 - s) x_0 + s eps with s = t / T, continuous in t.

    Source: rectified flow (Liu et al. 2023, arXiv:2209.03003), equation 1; conditional flow matching with optimal transport
    (Lipman et al. 2023, arXiv:2210.02747), equation 20, time reversed.

    Args:
        num_timesteps: T; only the network, which is told t, sees it.
        time_sampling: ``uniform``, or ``logit_normal`` with mean 0 and standard deviation 1 (Esser et al. 2024,
            arXiv:2403.03206, equation 19), which trains more in the middle.
    """

    def __init__(self, num_timesteps: int, time_sampling: Literal["uniform", "logit_normal"]):
        super().__init__(num_timesteps)
        self.time_sampling = time_sampling

    def times(self, u: Tensor) -> Tensor:
        """Drawn by the inverse of the distribution function."""
        s = u if self.time_sampling == "uniform" else torch.special.ndtri(u).sigmoid()
        return (s * self.num_timesteps).float()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - s and s."""
        s = t / self.num_timesteps
        return 1 - s, s

    def levels(self, num_steps: int) -> list[Level]:
        """Evenly spaced from s = 1."""
        if num_steps < 1:
            raise ValueError(f"{num_steps} steps: use at least one")
        fractions = [1 - step / num_steps for step in range(num_steps)]
        return [*(Level(s * self.num_timesteps, 1 - s, s) for s in fractions), CLEAN]


def linear_alpha_bar(num_timesteps: int) -> Tensor:
    """prod_(s <= t) (1 - beta_s), beta rising linearly, (T,) float64.

    beta goes from 1e-4 to 0.02 at T = 1000 (arXiv:2006.11239, section 4). For other T, both ends are multiplied with 1000 / T
    (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.2), so that as little of the picture is left at the end.

    Args:
        num_timesteps: T.

    >>> f"{linear_alpha_bar(1000)[-1].item():.10e}"
    '4.0358297654e-05'
    """
    scale = 1000 / num_timesteps
    beta = torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64).clamp(max=0.999)
    return (1 - beta).cumprod(0)


def cosine_alpha_bar(num_timesteps: int) -> Tensor:
    """prod_(r <= t) (1 - beta_r) with beta_t = min(1 - f(t + 1) / f(t), 0.999), f(t) = cos((t / T + s) / (1 + s) pi / 2)^2.

    Source: arXiv:2102.09672, equation 17 and the text below it. (T,) float64.

    Args:
        num_timesteps: T.
    """
    s = 0.008  # keeps the first steps from having next to no noise
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = torch.cos((t + s) / (1 + s) * math.pi / 2).square()  # (T + 1,)
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return (1 - beta).cumprod(0)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar), (T,) float64, so that the last step is all noise and the first as before.

    Source: Lin et al. 2024, arXiv:2305.08891, algorithm 1.
    """
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()


def posterior_variance(now: Level, then: Level) -> float:
    """Variance of q(x_s | x_t, x_0): sigma_s^2 / sigma_t^2 (sigma_t^2 - a^2 sigma_s^2), a = alpha_t / alpha_s, t now, s then.

    Source: arXiv:2006.11239, equation 7, for any two levels of any path; where the variance is preserved, the bracket is
    1 - alpha_bar_t / alpha_bar_s.
    """
    a = now.alpha / then.alpha
    return then.sigma**2 / now.sigma**2 * (now.sigma**2 - a**2 * then.sigma**2)


def schedule_of(
    objective: str, kind: str, num_timesteps: int, zero_snr: bool, time_sampling: Literal["uniform", "logit_normal"] = "uniform"
) -> Schedule:
    """Build the schedule that the keys of ``model`` describe.

    Args:
        objective: ``flow`` has its own schedule.
        kind: linear or cosine.
        num_timesteps: T.
        zero_snr: see ``zero_terminal_snr``.
        time_sampling: see ``StraightPath``; only training reads it.
    """
    if objective == "flow":
        return StraightPath(num_timesteps, time_sampling)
    alpha_bar = linear_alpha_bar(num_timesteps) if kind == "linear" else cosine_alpha_bar(num_timesteps)
    return DiscreteSchedule(zero_terminal_snr(alpha_bar) if zero_snr else alpha_bar)
