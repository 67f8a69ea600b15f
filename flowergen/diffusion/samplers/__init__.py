"""Samplers: each goes from noise to x_0 over given levels, and hands out every step on the way.

All have one signature, ``sampler(predict, x, levels, noise)``:

* ``predict(x, level)`` gives x0_hat and eps_hat, each (N, C, h, w);
* ``x`` is (N, C, h, w) noise at ``levels[0]``;
* ``levels`` go from the noisiest to ``CLEAN``;
* ``noise(k)`` gives fresh (N, C, h, w) noise for step k;

and yield (x after the step, x0_hat before it) once for each step.
"""

from functools import partial

from flowergen.diffusion.samplers.ddim import ddim
from flowergen.diffusion.samplers.ddpm import ddpm
from flowergen.diffusion.samplers.dpm_solver import dpmpp_2m
from flowergen.diffusion.samplers.euler import euler
from flowergen.diffusion.samplers.heun import heun
from flowergen.diffusion.steps import Sampler

SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}


def sampler_of(name: str, eta: float) -> Sampler:
    """Return a sampler by its name; ``eta`` is for ``ddim``."""
    return partial(ddim, eta=eta) if name == "ddim" else SAMPLERS[name]


__all__ = ["SAMPLERS", "ddim", "ddpm", "dpmpp_2m", "euler", "heun", "sampler_of"]
