"""New pictures of a trained model, of any family, and how they came about."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flowergen.data.image_datamodule import ImageDataModule, spread
from flowergen.errors import UserError
from flowergen.evaluation.latent_prior import LatentPrior
from flowergen.evaluation.latent_store import fit_to_pictures
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule, Sampling
from flowergen.randomness import generator, normal_per_sample

NO_CLASS = -1
MOST_STATES = 51  # of a trajectory
MOST_FITTED_IN_TRAINING = 1024  # pictures that the prior is fitted to while the model trains: a second or two


@dataclass(frozen=True)
class Sampler:
    """Draws latents of samples, by whatever way the model's family has.

    Attributes:
        model: in eval mode.
        draw: (indices, (N,) int64 labels, ``NO_CLASS`` for none) -> (N, C, h, w) latents in the autoencoder's units.
        description: what it is, for the user.
    """

    model: ImageModel
    draw: Callable[[Sequence[int], Tensor], Tensor]
    description: str


def diffusion_sampler(model: LatentDDPMModule, sampling: Sampling, seed: int) -> Sampler:
    """By denoising.

    Args:
        model: in eval mode.
        sampling: how.
        seed: of the noise.
    """

    def draw(index: Sequence[int], label: Tensor) -> Tensor:
        return model.denoised(index, _or_null(model, label), seed, sampling)

    interval = "" if tuple(sampling.guidance_interval) == (0, 1) else f" within {list(sampling.guidance_interval)}"
    eta = f", eta {sampling.eta:g}" if sampling.sampler == "ddim" else ""
    description = f"{sampling.steps} steps of {sampling.sampler}{eta}, guidance {sampling.guidance_scale:g}{interval}"
    return Sampler(model, draw, description)


def autoencoder_sampler(
    model: ImageModel,
    prior: LatentPrior | None,
    source: str,
    by_class: bool,
    seed: int,
    fitted_to: str = "the training latents",
) -> Sampler:
    """From the prior, the mixture that was fitted to the latents, or its Gaussian for each class.

    Args:
        model: a VAE or VAE-GAN in eval mode.
        prior: what was fitted to the latents, if anything was.
        source: ``auto``, ``prior`` or ``mixture``.
        by_class: whether the samples are of given classes.
        seed: of the draws.
        fitted_to: what the prior was fitted to, for the user.

    Raises:
        UserError: the mixture or a class is asked for, and nothing was fitted.
    """
    if prior is None and (by_class or source == "mixture"):
        what, instead = ("classes=", "leave them out") if by_class else ("source=mixture", "use source=prior")
        raise UserError(f"{what}: the run has no mixture model of these weights, which the end of training fits: {instead}")
    mixture = None if source == "prior" else prior

    def draw(index: Sequence[int], label: Tensor) -> Tensor:
        if (label != NO_CLASS).any():
            assert prior is not None
            missing = prior.class_means[label].isnan().any(1)
            if missing.any():
                raise UserError(f"class {label[missing][0].item()} has no training picture, and so no Gaussian to draw from")
            return prior.sample(index, seed, label).view(-1, *model.latent_shape)
        if mixture is not None:
            return mixture.sample(index, seed).view(-1, *model.latent_shape)
        return normal_per_sample(index, model.latent_shape, seed=seed, purpose="prior")

    fitted = f"fitted to {fitted_to}"
    num = len(mixture.weights) if mixture else 0
    description = ("a Gaussian" if num == 1 else f"a mixture of {num} Gaussians") + f" {fitted}" if num else "N(0, I)"
    description = f"a Gaussian for each class, {fitted}" if by_class else description
    return Sampler(model, draw, f"latents from {description}")


def sampler_in_training(model: ImageModel, data: ImageDataModule) -> Sampler:
    """The model's own sampler as it will be once training has ended: denoising, or a mixture, fitted to the present latents.

    Nothing that training reads is changed.

    Args:
        model: in eval mode.
        data: set up.

    Returns:
        A sampler of an autoencoder that draws from N(0, I) where no mixture can be fitted, and says so.
    """
    model = model.sampling_model
    if isinstance(model, LatentDDPMModule):
        return diffusion_sampler(model, model.sampling, model.seed)
    rows = spread(data.rows["train"], MOST_FITTED_IN_TRAINING)
    _, prior = fit_to_pictures(model, data, rows)
    return autoencoder_sampler(model, prior, "auto", False, model.seed, f"{len(rows):,} training latents")


def first_samples(sampler: Sampler, num: int, batch_size: int = 64, halve: bool = True) -> Tensor:
    """Samples 0 to num - 1; of a diffusion model with K classes, sample i is of class i mod K.

    Args:
        sampler: draws the latents.
        num: at least 1.
        batch_size, halve: see ``pictures``.

    Returns:
        (num, 3, S, S) in [0, 1] on the CPU.
    """
    num_classes = sampler.model.num_classes if isinstance(sampler.model, LatentDDPMModule) else 0
    labels = labels_by_frequency(num, num_classes, None, 0)
    return torch.cat([x for _, x in pictures(sampler, labels, batch_size, halve)])


def pictures(sampler: Sampler, labels: Tensor, batch_size: int, halve: bool, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """All samples, a batch at a time, so that any number of them needs the same memory.

    Args:
        sampler: draws the latents.
        labels: (N,) int64 of the samples, ``NO_CLASS`` for none.
        batch_size: at a time.
        halve: where a batch does not fit the GPU's memory, go on with half as many.
        first: the number to begin with.

    Yields:
        The number of the first, and (n, 3, S, S) in [0, 1] on the CPU.
    """
    while first < len(labels):
        part = labels[first : first + batch_size]
        try:
            with torch.inference_mode():
                z = sampler.draw(range(first, first + len(part)), part)
                x = sampler.model.decode(z.to(sampler.model.device)).cpu()
        except torch.cuda.OutOfMemoryError:
            if not halve or batch_size == 1:
                raise
            torch.cuda.empty_cache()
            batch_size //= 2
            continue
        yield first, x
        first += len(part)


@torch.inference_mode()
def trajectory(
    model: LatentDDPMModule, index: Sequence[int], labels: Tensor, seed: int, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """The way to samples: the same samples that ``diffusion_sampler`` draws. Of many steps, ``MOST_STATES`` are kept.

    Args:
        model: in eval mode.
        index: (N,) their numbers.
        labels: (N,) int64 classes.
        seed: of the noise.
        sampling: how.

    Returns:
        x_t, from noise to sample, and x0_hat, what the network took the picture to be at that moment, each
        (N, T, C, h, w) in the autoencoder's units on the CPU, T at most steps + 1; the last of both is the sample.
    """
    kept = set(torch.linspace(0, sampling.steps, min(sampling.steps + 1, MOST_STATES)).round().int().tolist())
    x = normal_per_sample(index, model.latent_shape, seed=seed, purpose="prior").to(model.device)
    x_t, x0_hats = [], []
    for step, (after, x0_hat) in enumerate(model.denoise(index, _or_null(model, labels), seed, sampling)):
        if step in kept:
            x_t.append(model.unscaled(x).cpu())
            x0_hats.append(model.unscaled(x0_hat).cpu())
        x = after
    x_t.append(model.unscaled(x).cpu())
    return torch.stack(x_t, dim=1), torch.stack([*x0_hats, x_t[-1]], dim=1)


def labels_of_classes(classes: Sequence[int], num_per_class: int) -> Tensor:
    """(N,) int64: so many of each, one class after the other."""
    return torch.tensor(classes, dtype=torch.int64).repeat_interleave(num_per_class)


def labels_by_frequency(num: int, num_classes: int, counts: Tensor | None, seed: int) -> Tensor:
    """Classes of so many samples; that of sample i depends on (seed, i) alone.

    Args:
        num: N.
        num_classes: K; 0 for none.
        counts: (K,) to draw in proportion to; None for each class in turn.
        seed: of the draws.

    Returns:
        (N,) int64.
    """
    if not num_classes:
        return torch.full((num,), NO_CLASS)
    if counts is None:
        return torch.arange(num) % num_classes
    edges = (counts.double().cumsum(0) / counts.sum())[:-1].contiguous()
    u = torch.tensor([generator(seed, i, "class").random() for i in range(num)], dtype=torch.float64)
    return torch.searchsorted(edges, u, right=True)


def first_of_each(labels: Tensor) -> list[int]:
    """Numbers of the first sample of each run of equal labels."""
    starts, position = [], 0
    for _, group in groupby(labels.tolist()):
        starts.append(position)
        position += len(list(group))
    return starts


def _or_null(model: LatentDDPMModule, label: Tensor) -> Tensor:
    return torch.where(label == NO_CLASS, model.num_classes, label)
