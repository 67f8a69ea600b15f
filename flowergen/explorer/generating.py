"""Computations of the tab Generate: new pictures, and their denoising step by step.

A value from a browser that is invalid, or not supported by the model, raises a ``UserError``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowergen.diffusion.combinations import sampler_refusal
from flowergen.diffusion.samplers import SAMPLERS
from flowergen.evaluation.sampling import labels_by_frequency
from flowergen.explorer import validation
from flowergen.explorer.model import ExplorerModel
from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
from flowergen.runs.sampling import DIFFUSION_OPTIONS, check_sampling, sampling_of

MAX_PICTURES = 16
MAX_STEPS = 200
MAX_FRAMES = 12  # states of a denoising that are shown, including the result
MAX_GUIDANCE = 20
SEEDS = 2**31 - 1
ESTIMATE, NOISY = WATCHED = ("the model's estimate of the picture", "the noisy picture")


@dataclass(frozen=True)
class Frame:
    """A state of the denoising.

    Attributes:
        pictures: (N, C, H, W) in [0, 1].
        step: number of steps taken.
        steps: number of steps in total; after the last one, the pictures are the samples.
    """

    pictures: Tensor
    step: int
    steps: int


def samplers_of(module: LatentDDPMModule) -> list[str]:
    """Return the names of the samplers that fit the model's objective."""
    return [name for name in SAMPLERS if sampler_refusal(module.objective, name) is None]


def checked_sampling(explorer: ExplorerModel, options: Mapping[str, Any]) -> SamplingSettings:
    """Return validated sampler settings: the model's own, overridden by the given options.

    Args:
        explorer: a diffusion model.
        options: any of sampler, steps, guidance_scale and guidance_interval.
    """
    module = explorer.module.denoising_model
    assert module is not None
    samplers = samplers_of(module)
    checks: dict[str, Callable[[Any], Any]] = {
        "sampler": lambda name: validation.one_of("The sampler", name, samplers),
        "steps": lambda steps: validation.whole("Steps", steps, 1, MAX_STEPS),
        "guidance_scale": lambda scale: validation.real("Guidance", scale, 0, MAX_GUIDANCE),
        "guidance_interval": lambda ends: sorted(validation.real("An end of the guidance interval", end, 0, 1) for end in ends),
    }
    config = {**dict.fromkeys(DIFFUSION_OPTIONS), **{key: checks[key](value) for key, value in options.items()}}
    check_sampling(config, explorer.model.config["model"], [], {})
    return sampling_of(config, module)


def labels_of(explorer: ExplorerModel, classes: Any, num: int) -> Tensor:
    """Return the classes (N,) of samples, cycling through the chosen ones; by default through all, or -1 for an autoencoder."""
    chosen = validation.labels(classes, explorer.class_names)
    if chosen:
        return torch.tensor(chosen)[torch.arange(num) % len(chosen)]
    return labels_by_frequency(num, len(explorer.class_names) if explorer.module.denoises else 0, None, 0)


def generate(
    explorer: ExplorerModel, num: Any, seed: Any, classes: Any, options: Mapping[str, Any], watched: str = ESTIMATE
) -> Iterator[Frame]:
    """Generate the pictures of ``LoadedModel.sample`` with these settings.

    Args:
        explorer: the model.
        num: number of pictures.
        seed: random seed.
        classes: labels to cycle through; None or empty for all.
        options: options of a diffusion model, see ``checked_sampling``.
        watched: ``ESTIMATE`` or ``NOISY``, the state that is displayed before the last step.

    Yields:
        At most ``MAX_FRAMES`` states, the last of which is the result.
    """
    num, seed = validation.whole("The number of pictures", num, 1, MAX_PICTURES), validation.whole("The seed", seed, 0, SEEDS)
    validation.one_of("The displayed state", watched, WATCHED)
    labels, module = labels_of(explorer, classes, num), explorer.module.denoising_model
    if module is None:
        yield Frame(explorer.model.sample(num, seed, labels.tolist() if classes else None).cpu(), 1, 1)
        return
    sampling = checked_sampling(explorer, options)
    steps = len(module.levels(sampling)) - 1
    drawn = set(torch.linspace(1, steps, min(steps, MAX_FRAMES)).round().int().tolist())
    null = torch.where(labels < 0, module.num_classes, labels)
    states = module.denoise(range(num), null, seed, sampling)
    for step in range(1, steps + 1):
        with torch.inference_mode():  # thread-local, and the next step may run in another thread
            x, x0_hat = next(states)
            if step not in drawn:
                continue
            z = x0_hat if step < steps and watched == ESTIMATE else x
            pictures = module.decode(module.unscaled(z)).cpu()
        yield Frame(pictures, step, steps)


def captions(explorer: ExplorerModel, labels: Sequence[int]) -> list[str]:
    """Return the name of each picture's class, or its number if it has none."""
    return [explorer.class_name(label) or f"picture {number}" for number, label in enumerate(labels, start=1)]
