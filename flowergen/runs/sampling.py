"""Sampling options shared by ``sample`` and ``evaluate``."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowergen.diffusion.combinations import sampler_refusal
from flowergen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from flowergen.evaluation.fast_network import FastNetwork
    from flowergen.evaluation.latent_store import LatentStore
    from flowergen.evaluation.sampling import LatentSampler
    from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
    from flowergen.runs.loaded_model import LoadedModel

log = logging.getLogger(__name__)

WORTH_COMPILING = 1024  # samples; on two cores, compiling a DiT takes as long as drawing 700 samples with it
DIFFUSION_OPTIONS = ("sampler", "steps", "guidance_scale", "guidance_interval", "eta")


def check_sampling(
    config: Mapping[str, Any], stored: Mapping[str, Any], typed: Sequence[str], unused: Mapping[str, str]
) -> None:
    """Check the options against the run's config, before anything is loaded.

    Args:
        config: config of the command.
        stored: ``model`` of the run's config.
        typed: the command line, for a note on options that have no effect.
        unused: further keys without effect, and what they are for.

    Raises:
        UserError: the model does not support an option.
    """
    own = stored.get("sampling")
    name = ""
    if own:
        scale = own["guidance_scale"] if config["guidance_scale"] is None else config["guidance_scale"]
        if stored["class_dropout"] == 0 and scale != 1:
            raise UserError(
                f"guidance_scale={scale}: the model was trained with class_dropout=0 and does not support guidance: give 1"
            )
        name, steps = config["sampler"] or own["sampler"], config["steps"] or own["steps"]
        reason = sampler_refusal(stored["objective"], name)
        if reason:
            raise UserError(f"sampler={name}: {reason}")
        if stored["objective"] != "flow" and steps > stored["num_timesteps"]:
            raise UserError(
                f"steps={steps}: this model has {stored['num_timesteps']} noise levels, and takes at most as many steps"
            )
    without_effect = (
        {"source": "VAEs"} if own else dict.fromkeys((*DIFFUSION_OPTIONS, "denoising", "precision"), "diffusion models")
    )
    if own and name != "ddim":
        without_effect["eta"] = "sampler=ddim"
    for key, reader in {**without_effect, **unused}.items():
        if any(argument.startswith(f"{key}=") for argument in typed):
            print(f"{key}= has no effect here: it is for {reader}", file=sys.stderr)


def stored_latents(model: "LoadedModel") -> "LatentStore | None":
    """Return the run's stored latents, if they belong to these weights."""
    from flowergen.evaluation.latent_store import read_latents

    return read_latents(model.run.latents, model.module.latents_fingerprint)


def sampling_of(config: Mapping[str, Any], module: "LatentDDPMModule") -> "SamplingSettings":
    """Return the diffusion model's sampling settings, overridden by the command line."""
    return replace(module.sampling, **{key: config[key] for key in DIFFUSION_OPTIONS if config[key] is not None})


def fast_denoiser(model: "LoadedModel", num: int) -> "FastNetwork | None":
    """Return the denoiser to draw many samples with, evaluated as it would be trained here; None if there is nothing to gain.

    Args:
        model: the loaded run.
        num: number of samples; fewer than ``WORTH_COMPILING`` are drawn before a network is compiled.
    """
    from flowergen.evaluation.fast_network import FastNetwork
    from flowergen.runs.trainer import resolve_precision

    trainer = model.config["trainer"]  # runs of older versions lack some keys
    bf16 = resolve_precision(trainer.get("precision", "32-true"), trainer.get("accelerator", "auto")) == "bf16-mixed"
    cuda_graphs = trainer.get("compile") == "cuda_graphs"
    compiled = (cuda_graphs or trainer.get("compile") is True) and num >= WORTH_COMPILING
    if not model.module.denoises or not (bf16 or compiled):
        return None
    return FastNetwork(model.module.inference_net, bf16, compiled, cuda_graphs and model.module.device.type == "cuda")


def latent_sampler(
    config: Mapping[str, Any],
    model: "LoadedModel",
    store: "LatentStore | None",
    by_class: bool,
    net: "FastNetwork | None" = None,
) -> "LatentSampler":
    """Return the sampler of the model.

    Args:
        config: config of the command.
        model: the loaded run.
        store: see ``stored_latents``.
        by_class: sample from a Gaussian for each class; for autoencoders.
        net: see ``diffusion_sampler``; for diffusion models.

    Raises:
        UserError: a mixture model is requested, and the run has none.
    """
    from flowergen.evaluation.sampling import autoencoder_sampler, diffusion_sampler

    module = model.module
    if module.denoising_model:
        return diffusion_sampler(module.denoising_model, sampling_of(config, module.denoising_model), config["seed"], net)
    return autoencoder_sampler(module, store.prior if store else None, config["source"], by_class, config["seed"])


def batch_size_of(config: Mapping[str, Any], on_gpu: bool) -> tuple[int, bool]:
    """Return the batch size, and whether to halve it if out of memory."""
    auto = config["batch_size"] == "auto"
    return (256 if on_gpu else 64) if auto else config["batch_size"], auto


def samples_of(
    model: "LoadedModel", num: int, seed: int, classes: Sequence[str | int] | None, options: Mapping[str, Any]
) -> "Tensor":
    """Sample as ``flowergen.sample`` does with these arguments and defaults otherwise; see ``LoadedModel.sample``."""
    import torch

    from flowergen.data.class_names import class_label
    from flowergen.evaluation.sampling import labels_by_frequency, pictures

    store, module = None, model.module
    config = {**dict.fromkeys(DIFFUSION_OPTIONS), **options, "source": "auto", "batch_size": "auto", "seed": seed}
    typed = [f"{key}={value}" for key, value in options.items() if value is not None]
    check_sampling(config, model.config["model"], typed, {})
    for key, value in {"num": num, "steps": options["steps"]}.items():
        if value is not None and value < 1:
            raise UserError(f"{key}={value}: it must be at least 1")
    if classes is None:
        labels = labels_by_frequency(num, len(model.class_names) if module.denoises else 0, None, seed)
    else:
        named = [class_label(name, model.class_names) for name in ([classes] if isinstance(classes, (str, int)) else classes)]
        if not named:
            raise UserError("classes is empty: give names or numbers, or None")
        labels = torch.tensor(named)[torch.arange(num) % len(named)]
    if not module.denoises:
        store = stored_latents(model)
        if classes is None and (store is None or store.prior is None):
            log.warning(f"{model.run.path} has no mixture model of these weights: samples are decoded from N(0, I)")
    batch_size, halve = batch_size_of(config, module.device.type == "cuda")
    sampler = latent_sampler(config, model, store, classes is not None)
    return torch.cat([x for _, x in pictures(sampler, labels, batch_size, halve)]).to(module.device)
