"""Sampling of new pictures from trained models of any family, and their denoising trajectories."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flowergen.data.image_datamodule import ImageDataModule, evenly_spaced
from flowergen.errors import UserError
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.evaluation.latent_prior import LatentPrior
from flowergen.evaluation.latent_store import fit_to_pictures
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
from flowergen.randomness import generator, normal_per_sample

NO_CLASS = -1
BATCH_SIZE = 64  # samples drawn at a time during training
MAX_STATES = 51  # states kept of a trajectory
MAX_FITTED_IN_TRAINING = 1024  # pictures that the prior is fitted to during training; takes a second or two


@dataclass(frozen=True)
class LatentSampler:
    """Draws latents of samples with the method of the model's family.

    Attributes:
        model: a model in eval mode.
        draw: (indices, (N,) int64 labels, ``NO_CLASS`` for none) -> (N, C, h, w) latents in the autoencoder's units.
        description: description of the method, for the user.
    """

    model: ImageModel
    draw: Callable[[Sequence[int], Tensor], Tensor]
    description: str


def diffusion_sampler(
    model: LatentDDPMModule, sampling: SamplingSettings, seed: int, net: FastNetwork | None = None
) -> LatentSampler:
    """Return a sampler that denoises.

    Args:
        model: a model in eval mode.
        sampling: sampler settings.
        seed: random seed for the noise.
        net: the model's denoiser, prepared for many samples; None to evaluate it in float32.
    """

    def draw(index: Sequence[int], label: Tensor) -> Tensor:
        return model.denoised(index, _or_null(model, label), seed, sampling, net)

    interval = "" if tuple(sampling.guidance_interval) == (0, 1) else f" within {list(sampling.guidance_interval)}"
    eta = f", eta {sampling.eta:g}" if sampling.sampler == "ddim" else ""
    bf16 = ", in bf16" if net and net.bf16 else ""
    description = f"{sampling.steps} steps of {sampling.sampler}{eta}, guidance {sampling.guidance_scale:g}{interval}{bf16}"
    return LatentSampler(model, draw, description)


def autoencoder_sampler(
    model: ImageModel,
    prior: LatentPrior | None,
    source: str,
    by_class: bool,
    seed: int,
    fitted_to: str = "the training latents",
) -> LatentSampler:
    """Return a sampler that draws from N(0, I), the mixture fitted to the latents, or the Gaussian fitted to each class.

    Args:
        model: a VAE or VAE-GAN in eval mode.
        prior: the model fitted to the latents, if any.
        source: ``auto``, ``prior`` or ``mixture``.
        by_class: whether the samples are of given classes.
        seed: random seed for the draws.
        fitted_to: what the prior was fitted to, for the user.

    Raises:
        UserError: the mixture or a class is requested, but nothing was fitted.
    """
    if prior is None and (by_class or source == "mixture"):
        what, instead = ("classes=", "leave them out") if by_class else ("source=mixture", "use source=prior")
        raise UserError(f"{what}: the run has no mixture model of these weights; it is fitted when training ends: {instead}")
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
    return LatentSampler(model, draw, f"latents from {description}")


def sampler_in_training(model: ImageModel, data: ImageDataModule) -> LatentSampler:
    """Return the model's own sampler as after training: denoising, or a mixture fitted to the current latents.

    The training state is not changed.

    Args:
        model: a model in eval mode.
        data: the data module, set up.

    Returns:
        A sampler; for an autoencoder without a fitted mixture, it draws from N(0, I) and its description says so.
    """
    model = model.sampling_model
    if model.denoising_model:
        return diffusion_sampler(model.denoising_model, model.denoising_model.sampling, model.seed)
    rows = evenly_spaced(data.rows["train"], MAX_FITTED_IN_TRAINING)
    _, prior = fit_to_pictures(model, data, rows)
    return autoencoder_sampler(model, prior, "auto", False, model.seed, f"{len(rows):,} training latents")


def first_samples(sampler: LatentSampler, num: int) -> Tensor:
    """Draw samples 0 to num - 1; with a diffusion model of K classes, sample i is of class i mod K.

    Args:
        sampler: draws the latents.
        num: number of samples, at least 1.

    Returns:
        (num, C, H, W) in [0, 1] on the CPU.
    """
    num_classes = sampler.model.denoising_model.num_classes if sampler.model.denoising_model else 0
    labels = labels_by_frequency(num, num_classes, None, 0)
    return torch.cat([x for _, x in pictures(sampler, labels, BATCH_SIZE, halve=True)])


def pictures(
    sampler: LatentSampler, labels: Tensor, batch_size: int, halve: bool, first: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Draw all samples in batches, so memory use does not depend on their number.

    Args:
        sampler: draws the latents.
        labels: (N,) int64 classes of the samples, ``NO_CLASS`` for none.
        batch_size: samples per batch.
        halve: halve the batch size if a batch does not fit into GPU memory.
        first: number of the first sample to draw.

    Yields:
        The number of the batch's first sample, and (n, C, H, W) in [0, 1] on the CPU.
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
    model: LatentDDPMModule,
    index: Sequence[int],
    labels: Tensor,
    seed: int,
    sampling: SamplingSettings,
    net: FastNetwork | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the denoising trajectories of the samples that ``diffusion_sampler`` draws; at most ``MAX_STATES`` are kept.

    Args:
        model: a model in eval mode.
        index: (N,) numbers of the samples.
        labels: (N,) int64 classes.
        seed: random seed for the noise.
        sampling: sampler settings.
        net: see ``diffusion_sampler``.

    Returns:
        x_t, from noise to sample, and x0_hat, the network's estimate of the clean picture at that step, each
        (N, T, C, h, w) in the autoencoder's units on the CPU, T at most steps + 1; the last of both is the sample.
    """
    kept = set(torch.linspace(0, sampling.steps, min(sampling.steps + 1, MAX_STATES)).round().int().tolist())
    x = normal_per_sample(index, model.latent_shape, seed=seed, purpose="prior").to(model.device)
    x_t, x0_hats = [], []
    for step, (after, x0_hat) in enumerate(model.denoise(index, _or_null(model, labels), seed, sampling, net)):
        if step in kept:
            x_t.append(model.unscaled(x).cpu())
            x0_hats.append(model.unscaled(x0_hat).cpu())
        x = after
    x_t.append(model.unscaled(x).cpu())
    return torch.stack(x_t, dim=1), torch.stack([*x0_hats, x_t[-1]], dim=1)


def labels_of_classes(classes: Sequence[int], num_per_class: int) -> Tensor:
    """Return (N,) int64 labels, ``num_per_class`` of each class, one class after the other."""
    return torch.tensor(classes, dtype=torch.int64).repeat_interleave(num_per_class)


def labels_by_frequency(num: int, num_classes: int, counts: Tensor | None, seed: int) -> Tensor:
    """Choose the classes of N samples; the class of sample i depends only on (seed, i).

    Args:
        num: number of samples N.
        num_classes: K; 0 for none.
        counts: (K,) class frequencies to draw from; None to cycle through the classes.
        seed: random seed for the draws.

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


def group_starts(labels: Tensor) -> list[int]:
    """Return the index of the first sample in each run of equal labels."""
    starts, position = [], 0
    for _, group in groupby(labels.tolist()):
        starts.append(position)
        position += len(list(group))
    return starts


def _or_null(model: LatentDDPMModule, label: Tensor) -> Tensor:
    return torch.where(label == NO_CLASS, model.num_classes, label)
