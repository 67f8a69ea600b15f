"""Diffusion of latents and of pixels: what is learnt, what is scored, and what comes out."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.batch import Batch, LatentBatch
from flowergen.errors import UserError
from flowergen.evaluation.sampling import diffusion_sampler, first_samples
from flowergen.losses.alignment import alignment_loss
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.latent_ddpm import NUM_LEVELS, LatentDDPMModule
from flowergen.nn.dit import DiT
from flowergen.nn.unet import UNet
from flowergen.randomness import normal, uniform
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.tiny_models import SIZE, TinyAutoencoder, diffusion

OBJECTIVES = ["eps", "v", "x0", "flow"]


def pictures(num: int, size: int = SIZE) -> Tensor:
    """Smooth, distinct colour gradients in [0, 1]."""
    corners = torch.rand(num, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(corners, size=size, mode="bilinear", align_corners=True)


def batch(num: int = 4) -> Batch:
    return Batch(pictures(num), torch.arange(num) % 3, torch.arange(num))


def given(num: int, module: LatentDDPMModule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, eps, t and labels."""
    g = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(num, *module.latent_shape, generator=g) for _ in range(2))
    return 0.7 * x0 + 0.3, eps, torch.arange(num) * (100 / num) // 1, torch.arange(num) % 4


def level_of(objective: str, t: Tensor, T: int = 100) -> tuple[Tensor, Tensor]:
    """alpha and sigma from scratch: the cosine schedule of arXiv:2102.09672, for eps the linear one of arXiv:2006.11239, or the
    straight path. (N,) float64."""
    if objective == "flow":
        return 1 - t.double() / T, t.double() / T

    def f(step: int) -> float:
        return math.cos((step / T + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = [1.0]
    for step in range(T):
        linear = 1000 / T * (1e-4 + (0.02 - 1e-4) * step / (T - 1))
        alpha_bar.append(alpha_bar[-1] * (1 - (linear if objective == "eps" else min(1 - f(step + 1) / f(step), 0.999))))
    chosen = torch.tensor(alpha_bar[1:], dtype=torch.float64)[t.long()]
    return chosen.sqrt(), (1 - chosen).sqrt()


# -- the objective


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_denoiser_that_answers_0_has_the_loss_of_the_target_s_second_moment(objective: str) -> None:
    """For noise of variance 1: 1 for eps, |x_0|^2 for x0, alpha^2 + sigma^2 |x_0|^2 for v, 1 + |x_0|^2 for flow."""
    module = diffusion(awake=False, objective=objective)
    x0, eps, t, label = given(2000, module)
    losses = module.losses(module.net, x0, eps, t, label)
    power = x0.double().square().mean((1, 2, 3))
    alpha, sigma = level_of(objective, t)
    expected = {"eps": torch.ones(2000), "x0": power, "v": alpha**2 + sigma**2 * power, "flow": 1 + power}[objective]
    assert losses.shape == (2000,)
    assert losses.mean().item() == pytest.approx(expected.mean().item(), rel=1e-6 if objective == "x0" else 0.02)


@pytest.mark.parametrize(
    ("objective", "weighting"), [*((objective, "none") for objective in OBJECTIVES), *((o, "min_snr") for o in OBJECTIVES[:3])]
)
def test_the_losses_are_what_the_papers_write(objective: str, weighting: str) -> None:
    """Noise level, target and weight computed anew, in float64; the network's answer to x_t, t and label is its own."""
    module = diffusion(objective=objective, weighting=weighting, min_snr_gamma=3.0)
    x0, eps, t, label = given(10, module)
    alpha, sigma = (level[:, None, None, None] for level in level_of(objective, t))
    x_t = alpha * x0 + sigma * eps
    answer = module.net(x_t.float(), t, label).double()
    target = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[objective]
    expected = (answer - target).square().mean((1, 2, 3))
    if weighting == "min_snr":
        snr = (alpha / sigma).square().flatten()
        expected = expected * snr.clamp(max=3.0) / {"eps": snr, "x0": torch.ones(()), "v": snr + 1}[objective]
    torch.testing.assert_close(module.losses(module.net, x0, eps, t, label).double(), expected, rtol=1e-4, atol=1e-5)


def drawing(module: LatentDDPMModule) -> LatentDDPMModule:
    """Needs no Trainer: the draws of one device that does not accumulate."""

    def draw(source: Callable[..., Tensor], num: int, shape: tuple[int, ...], batch_idx: int, purpose: str) -> Tensor:
        return source((num, *shape), seed=module.seed, step=module.optimizer_steps, purpose=purpose)

    module.draw_for_step = draw  # type: ignore[method-assign, assignment]
    return module


@pytest.mark.parametrize("objective", ["v", "flow"])
def test_a_training_step_is_the_mean_loss_at_the_draws_of_this_optimiser_step(objective: str) -> None:
    module = drawing(diffusion(objective=objective, class_dropout=0.5))
    module.set_latent_scale(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]))
    module.optimizer_steps = 7
    data = batch(8)

    def draw(source: Callable[..., Tensor], purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        return source((8, *shape), seed=0, step=7, purpose=purpose)

    assert module.autoencoder is not None
    mean, logvar = module.autoencoder.encode(data.image)
    z = mean + (logvar / 2).exp() * draw(normal, "posterior", module.latent_shape)
    x0 = torch.stack(((z[:, 0] - 0.5) / 2, (z[:, 1] + 1) / 0.25), dim=1)
    u = (draw(uniform, "time")[:1] + torch.arange(8) / 8) % 1
    t = u * 100 if objective == "flow" else (u * 100).floor()
    dropped = draw(uniform, "class dropout") < 0.5
    assert 0 < dropped.sum() < 8
    label = torch.where(dropped, 3, data.label)
    expected = module.losses(module.net, x0, draw(normal, "diffusion", module.latent_shape), t, label).mean()
    torch.testing.assert_close(module.training_step(data, 0), expected)
    torch.testing.assert_close(module.epoch_means.compute()["loss"], expected.item())


def test_cached_latents_give_the_loss_of_their_pictures() -> None:
    module, data = drawing(diffusion()), batch()
    assert module.autoencoder is not None
    latents = LatentBatch(*module.autoencoder.encode(data.image), data.label, data.index, torch.empty(4, 0, 1, 1))
    torch.testing.assert_close(module.training_step(latents, 0), module.training_step(data, 0))
    torch.testing.assert_close(module.scores(latents), module.scores(data))


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_the_alignment_is_that_of_the_head_s_prediction_with_the_standardised_features(network: str) -> None:
    """Weighed and added to the loss of the same draws; recorded apart, and in no way part of the scores."""
    if network == "dit":
        changes: dict[str, Any] = {"network": partial(DiT, patch_size=2, hidden_size=8, depth=2, num_heads=2, block="modern")}
    else:
        changes = {}
    plain = drawing(diffusion(**changes))
    module = drawing(diffusion(alignment_weight=0.5, **changes))
    assert plain.autoencoder is not None
    data, features = batch(), torch.rand(4, 24, 4, 4).half()
    latents = LatentBatch(*plain.autoencoder.encode(data.image), data.label, data.index, features)
    mean, std = torch.rand(24), torch.rand(24) + 0.5
    module.set_feature_scale(mean, std)

    seen: list[Tensor] = []
    module.feature_head.register_forward_hook(lambda head, inputs, output: seen.append(output))
    total, loss = module.training_step(latents, 0), plain.training_step(latents, 0)
    expected = alignment_loss(seen[0], (features.float() - mean[:, None, None]) / std[:, None, None]).mean()
    torch.testing.assert_close(total, loss + 0.5 * expected)
    recorded = module.epoch_means.compute()
    torch.testing.assert_close(recorded["loss"], loss.item())
    torch.testing.assert_close(recorded["loss_alignment"], expected.item())
    torch.testing.assert_close(module.scores(latents), plain.scores(latents))


def test_the_alignment_trains_the_head_and_the_denoiser_up_to_its_hidden_features() -> None:
    """And what comes after them not: of the loss of alignment alone."""
    module = drawing(diffusion(alignment_weight=1e6))
    optimised = {id(parameter) for group in module.configure_optimizers().param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for net in (module.net, module.feature_head) for parameter in net.parameters()}
    data = batch()
    assert module.autoencoder is not None
    latents = LatentBatch(*module.autoencoder.encode(data.image), data.label, data.index, torch.rand(4, 24, 4, 4))
    module.training_step(latents, 0).backward()
    largest = {name: parameter.grad.abs().max() for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert all(largest[f"feature_head.{name}"] > 100 for name, _ in module.feature_head.named_parameters())
    assert largest["net.first.weight"] > 100
    assert largest["net.last.2.weight"] < 100


def test_a_network_without_hidden_features_cannot_be_aligned() -> None:
    class Plain(nn.Module):
        hidden_channels = 8

        def __init__(self, shape: tuple[int, int, int], num_classes: int):
            super().__init__()

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return x

    with pytest.raises(UserError, match=r"model\.alignment_weight needs a network that returns its hidden features"):
        diffusion(awake=False, network=Plain, alignment_weight=0.5)


def test_flat_latents_have_no_positions_to_align() -> None:
    with pytest.raises(UserError, match=r"model\.alignment_weight .*flat"):
        diffusion(autoencoder=TinyAutoencoder(flat=True), alignment_weight=0.5)


def test_pictures_without_a_label_are_of_no_class() -> None:
    """-1 is K, in training and validation."""
    module, data = drawing(diffusion(class_dropout=0.0)), batch()
    unlabelled, null = (data._replace(label=torch.full((4,), label)) for label in (-1, 3))
    assert torch.equal(module.training_step(unlabelled, 0), module.training_step(null, 0))
    assert not torch.equal(module.training_step(unlabelled, 0), module.training_step(data, 0))
    torch.testing.assert_close(module.scores(unlabelled), module.scores(null), rtol=0, atol=0)


def test_a_class_that_is_always_dropped_says_nothing_and_one_that_is_never_dropped_does() -> None:
    for class_dropout in (1.0, 0.0):
        module, data = drawing(diffusion(class_dropout=class_dropout)), batch()
        losses = [module.training_step(data._replace(label=data.label.roll(shift)), 0).item() for shift in (0, 1)]
        assert (losses[0] == losses[1]) == bool(class_dropout)


def test_a_data_set_without_classes_trains() -> None:
    module, data = drawing(diffusion(num_classes=0)), batch()
    assert module.training_step(data._replace(label=torch.full((4,), -1)), 0).isfinite()
    assert samples(module, 2, seed=0).shape == (2, 3, SIZE, SIZE)


def test_it_overfits_one_batch() -> None:
    """Four pictures, the same noise and times each time, 100 steps: a loss below 0.03, from more than 0.5."""
    network = partial(UNet, channels=16, multipliers=[1, 1], num_blocks=1, attention_resolutions=[], head_channels=8)
    module = drawing(diffusion(awake=False, network=network, class_dropout=0.0, optimizer=partial(torch.optim.Adam, lr=5e-3)))
    optimizer, data, losses = module.configure_optimizers(), batch(4), list[float]()
    for _ in range(100):
        loss = module.training_step(data, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[-1] < 0.03


# -- pictures and latents


def test_scaling_has_an_inverse_and_is_for_each_channel() -> None:
    module = diffusion()
    module.set_latent_scale(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.1]))
    z = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.1])[:, None, None]
    z = z + torch.tensor([3.0, -1.0])[:, None, None]
    x0 = module.scaled(z)
    torch.testing.assert_close(x0[:, 1], (z[:, 1] + 1) / 0.1)
    torch.testing.assert_close(module.unscaled(x0), z)
    assert {"latent_mean", "latent_std"} <= set(module.state_dict()), "they are part of the checkpoint"


def test_pixels_are_diffused_between_minus_1_and_1_and_decoded_as_they_were() -> None:
    module, x = diffusion(on_pixels=True), pictures(3)
    assert module.latent_shape == (3, SIZE, SIZE)
    posterior = module.encode(x)
    torch.testing.assert_close(posterior.mean, 2 * x - 1)
    z = posterior.sample(torch.randn_like(x))
    torch.testing.assert_close(z, 2 * x - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(module.decode(z), x, rtol=0, atol=1e-5)
    decoded = module.decode(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(-1, 1, 1, 1))
    torch.testing.assert_close(decoded.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_latents_are_encoded_and_decoded_by_the_autoencoder() -> None:
    autoencoder = TinyAutoencoder(seed=3)
    module, x = diffusion(autoencoder=autoencoder), pictures(3)
    torch.testing.assert_close(tuple(module.encode(x)), tuple(autoencoder.encode(x)), rtol=0, atol=0)
    z = autoencoder.encode(x).mean
    torch.testing.assert_close(module.decode(z), autoencoder.decode(z), rtol=0, atol=0)


def test_a_flat_latent_is_diffused_too() -> None:
    module = drawing(diffusion(autoencoder=TinyAutoencoder(flat=True)))
    assert module.latent_shape == (32, 1, 1)
    assert module.training_step(batch(), 0).isfinite()
    assert samples(module, 2, seed=0).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("network", [None, "EfficientNet-Lite0", "VGG-16"])
def test_whose_features_have_trained_it_is_told_by_the_autoencoder_and_the_alignment(
    network: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyAutoencoder, "features_trained_with", network)
    assert diffusion().features_trained_with == network
    aligned = {None: "EfficientNet-Lite0", "VGG-16": "EfficientNet-Lite0 and VGG-16"}
    assert diffusion(alignment_weight=0.5).features_trained_with == aligned.get(network, network)
    assert diffusion(on_pixels=True).features_trained_with is None


def test_the_autoencoder_is_frozen_and_no_part_of_the_module() -> None:
    """Not in its state, in eval mode whatever the module is in, and without a gradient."""
    module = drawing(diffusion())
    module.train()
    assert module.autoencoder is not None
    assert not any(part.training for part in module.autoencoder.modules())
    own = {id(parameter) for parameter in module.autoencoder.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in module.parameters())
    assert {name.split(".")[0] for name in module.state_dict()} == {"net", "latent_mean", "latent_std"}
    module.training_step(batch(), 0).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.autoencoder.parameters())
    (group,) = module.configure_optimizers().param_groups
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in module.net.parameters()}


# -- sampling


def samples(module: LatentDDPMModule, num: int, seed: int) -> Tensor:
    return first_samples(diffusion_sampler(module, module.sampling, seed), num)


def denoised(module: LatentDDPMModule, index: list[int], label: list[int], seed: int = 0, **changes: Any) -> Tensor:
    """The samples, (N, C, h, w)."""
    with torch.inference_mode():
        return list(module.denoise(index, torch.tensor(label), seed, replace(module.sampling, **changes)))[-1][0]


@pytest.mark.parametrize(
    ("objective", "sampler", "eta"),
    [("v", "dpmpp_2m", 0.0), ("eps", "ddpm", 0.0), ("x0", "ddim", 0.0), ("v", "ddim", 1.0), ("flow", "heun", 0.0)],
)
@pytest.mark.parametrize("on_pixels", [False, True])
def test_a_sample_depends_on_seed_number_and_class_alone(on_pixels: bool, objective: str, sampler: str, eta: float) -> None:
    """Not on the samples beside it, on its place among them, or on global state."""
    module = diffusion(on_pixels=on_pixels, objective=objective, class_dropout=0.0)
    settings: dict[str, Any] = {"sampler": sampler, "eta": eta}
    together = denoised(module, [0, 1, 2, 3, 4], [0, 1, 2, 3, 0], **settings)
    torch.manual_seed(99)
    alone = denoised(module, [2], [2], **settings)
    elsewhere = denoised(module, [7, 4, 2], [1, 0, 2], **settings)
    scale = max(1.0, together.abs().max().item())  # an untrained network that predicts eps overshoots by far
    for sample, same in ((alone[0], together[2]), (elsewhere[2], together[2]), (elsewhere[1], together[4])):
        torch.testing.assert_close(sample, same, rtol=0, atol=1e-4 * scale)
    others = (
        denoised(module, [2], [2], seed=1, **settings),
        denoised(module, [3], [2], **settings),
        denoised(module, [2], [0], **settings),
    )
    for other in others:
        assert (other[0] - together[2]).abs().max() > 1e-2


def test_pictures_are_the_decoded_samples_of_each_class_in_turn() -> None:
    module = diffusion()
    module.set_latent_scale(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    with torch.inference_mode():
        x = samples(module, 5, seed=3)
        expected = module.decode(module.unscaled(denoised(module, list(range(5)), [0, 1, 2, 0, 1], seed=3)))
        first = samples(module, 2, seed=3)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(x[:2], first, rtol=0, atol=1e-4)
    assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_from_the_unconditional_answer_through_the_conditional_one_and_beyond(scale: float) -> None:
    """Deterministic DDIM written out, from the network alone; at 1 the network is never asked without a class."""
    module = diffusion(objective="v")
    label, null = torch.tensor([0, 2]), torch.tensor([3, 3])
    with torch.inference_mode():
        steps = list(module.denoise([4, 9], label, 5, replace(module.sampling, sampler="ddim", steps=5, guidance_scale=scale)))
        x = torch.stack([normal(module.latent_shape, seed=5, step=i, purpose="prior") for i in (4, 9)]).double()
        times = torch.tensor([99.0, 79.0, 59.0, 39.0, 19.0])
        alphas, sigmas = level_of("v", times)
        for k, t in enumerate(times):
            conditional, without = (module.net(x.float(), t.expand(2), asked) for asked in (label, null))
            v = without + scale * (conditional - without)
            x0_hat, eps_hat = alphas[k] * x - sigmas[k] * v, sigmas[k] * x + alphas[k] * v
            torch.testing.assert_close(steps[k][1].double(), x0_hat, rtol=1e-4, atol=1e-4)
            alpha, sigma = (alphas[k + 1], sigmas[k + 1]) if k < 4 else (1.0, 0.0)
            x = alpha * x0_hat + sigma * eps_hat
            torch.testing.assert_close(steps[k][0].double(), x, rtol=1e-4, atol=1e-4)
    asked_for: list[Tensor] = []
    module.net.register_forward_hook(lambda net, inputs, output: asked_for.append(inputs[2]))
    denoised(module, [4, 9], [0, 2], guidance_scale=1.0)
    assert all((labels != 3).all() for labels in asked_for)


def test_guidance_is_on_within_its_interval_only() -> None:
    module, seen = diffusion(), list[tuple[float, int]]()
    module.net.register_forward_hook(lambda net, inputs, output: seen.append((inputs[1][0].item(), len(inputs[0]))))
    denoised(module, [0, 1, 2], [0, 1, 2], steps=5, guidance_interval=[0.3, 0.7])
    assert seen == [(99.0, 3), (79.0, 3), (59.0, 6), (39.0, 6), (19.0, 3)]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_what_is_taken_for_a_picture_stays_a_picture_and_latents_are_free(sampler: str) -> None:
    """Pixels lie in [-1, 1]; a network that answers far too much is cut there, in every step."""
    for on_pixels in (True, False):
        module = diffusion(on_pixels=on_pixels, objective="x0")
        module.net.register_forward_hook(lambda net, inputs, output: 50 * output)
        with torch.inference_mode():
            steps = list(module.denoise([0, 1], torch.tensor([0, 1]), 0, replace(module.sampling, sampler=sampler)))
        largest = max(x0_hat.abs().max().item() for _, x0_hat in steps)
        assert largest == 1 if on_pixels else largest > 2
        if on_pixels:
            assert steps[-1][0].abs().max() <= 1 + 1e-5


def test_a_clipped_guess_implies_the_noise_that_leads_to_it() -> None:
    """x_t = alpha x0_hat + sigma eps_hat goes on to hold, so that DDIM's step leads from the clipped guess."""
    module = diffusion(on_pixels=True, objective="x0")
    module.net.register_forward_hook(lambda net, inputs, output: 50 * output)
    with torch.inference_mode():
        steps = list(module.denoise([0], torch.tensor([3]), 0, replace(module.sampling, sampler="ddim", steps=2)))
    alpha, sigma = level_of("x0", torch.tensor([99.0, 49.0]))
    noise = normal(module.latent_shape, seed=0, step=0, purpose="prior")
    x, x0_hat = (value[0].double() for value in steps[0])
    eps_hat = (noise - alpha[0] * x0_hat) / sigma[0]
    torch.testing.assert_close(x, alpha[1] * x0_hat + sigma[1] * eps_hat, rtol=1e-4, atol=1e-4)


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "eps", "zero_terminal_snr": True}, r"model\.objective=eps: .*use v or x0"),
        ({"objective": "eps", "schedule": "cosine"}, r"model\.objective=eps: .*use schedule=linear, or v"),
        ({"objective": "v", "zero_terminal_snr": True, "weighting": "min_snr"}, r"model\.objective=v: min_snr"),
        ({"objective": "flow", "weighting": "min_snr"}, r"model\.objective=flow: min_snr"),
        ({"objective": "flow", "zero_terminal_snr": True}, r"model\.objective=flow: "),
        ({"objective": "v", "time_sampling": "logit_normal"}, r"model\.objective=v: logit_normal"),
        ({"network": partial(UNet, channels=8, multipliers=[1] * 4, num_blocks=1, attention_resolutions=[], head_channels=8)},
         r"model\.network: 4 levels halve a map of side 4"),
    ],
)  # fmt: skip
def test_combinations_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        diffusion(**changes)


@pytest.mark.parametrize(
    ("objective", "sampler", "steps", "words"),
    [
        ("v", "euler", 4, "sampler=euler: .*follows a flow"),
        ("eps", "heun", 4, "sampler=heun: .*follows a flow"),
        ("v", "ddim", 101, "steps: 101 steps: .*1 to 100"),
        ("flow", "euler", 0, "steps: 0 steps"),
    ],
)
def test_samplers_that_do_not_go_with_the_model_are_refused(objective: str, sampler: str, steps: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        denoised(diffusion(objective=objective), [0], [0], sampler=sampler, steps=steps)


def test_the_checkpoint_of_another_autoencoder_is_refused() -> None:
    """Its latents, and their scale, are others; diffusion on pixels is one more kind."""
    checkpoint: dict[str, Any] = {}
    diffusion(autoencoder=TinyAutoencoder(seed=0)).on_save_checkpoint(checkpoint)
    assert checkpoint["flowergen"]["autoencoder"] == fingerprint(TinyAutoencoder(seed=0).inference_net)
    diffusion(autoencoder=TinyAutoencoder(seed=0)).on_load_checkpoint(checkpoint)
    for other in (TinyAutoencoder(seed=1), None):
        with pytest.raises(UserError, match="an autoencoder other than the one in its run folder"):
            diffusion(autoencoder=other).on_load_checkpoint(checkpoint)
    of_pixels: dict[str, Any] = {}
    diffusion(on_pixels=True).on_save_checkpoint(of_pixels)
    diffusion(on_pixels=True).on_load_checkpoint(of_pixels)
    with pytest.raises(UserError, match="an autoencoder other than the one in its run folder"):
        diffusion().on_load_checkpoint(of_pixels)


# -- validation


def test_a_picture_s_scores_depend_on_it_and_its_number_alone() -> None:
    module, data = diffusion(), batch(5)
    together = module.scores(data)
    assert set(together) == {"loss", *(f"loss_noise_{level}" for level in range(1, NUM_LEVELS + 1))}
    part = Batch(data.image[[4, 2]], data.label[[4, 2]], data.index[[4, 2]])
    torch.manual_seed(99)
    for name, value in module.scores(part).items():
        torch.testing.assert_close(value, together[name][[4, 2]], rtol=1e-4, atol=1e-5)
    renumbered = module.scores(part._replace(index=part.index + 7))
    assert all(not torch.allclose(renumbered[name], together[name][[4, 2]]) for name in together)


def test_scores_have_the_draws_of_the_seed_that_is_given_whatever_the_modules_own() -> None:
    """Another seed has other times and another noise; without one they are the module's own."""
    module, other, data = diffusion(seed=0), diffusion(seed=1), batch(5)
    for name, value in module.scores(data, seed=1).items():
        torch.testing.assert_close(value, other.scores(data, seed=1)[name], rtol=0, atol=0)
        torch.testing.assert_close(value, other.scores(data)[name], rtol=0, atol=0)
        assert not torch.isclose(value, module.scores(data)[name]).any()
        torch.testing.assert_close(module.scores(data, seed=0)[name], module.scores(data)[name], rtol=0, atol=0)


def test_a_seed_draws_the_times_the_noise_and_the_latents() -> None:
    """Each of the three; of the noise at every level."""

    def drawn_with(seed: int) -> list[Tensor]:
        module, seen = diffusion(), list[Tensor]()

        def watched(net: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
            seen.extend((x0, eps, t))
            return torch.zeros(len(x0))

        module.losses = watched  # type: ignore[method-assign]
        module.scores(batch(3), seed)
        return seen

    first, again, other = drawn_with(4), drawn_with(4), drawn_with(5)
    assert len(first) == 3 * NUM_LEVELS
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.isclose(a, c).all(-1).any() if a.ndim > 1 else not torch.isclose(a, c).any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_of_the_four_losses_is_at_times_of_its_quarter_and_their_mean_is_the_loss(objective: str) -> None:
    """Quarter 1 has the least noise. A picture's place within the quarters is the same in all of them, its noise is not."""
    module, seen = diffusion(objective=objective), list[tuple[Tensor, Tensor]]()
    losses = module.losses

    def watched(net: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append((t, eps))
        return losses(net, x0, eps, t, label)

    module.losses = watched  # type: ignore[method-assign]
    many = Batch(pictures(1).expand(200, -1, -1, -1), torch.zeros(200, dtype=torch.int64), torch.arange(200))
    scores = module.scores(many)
    for quarter, (t, _) in enumerate(seen):
        assert 25 * quarter <= t.min() < 25 * quarter + 2
        assert 25 * quarter + 22 < t.max() < 25 * (quarter + 1)
        torch.testing.assert_close(t, seen[0][0] + 25 * quarter, rtol=0, atol=1e-4)
    for (_, a), (_, b) in pairwise(seen):
        assert abs((a * b).mean().item()) < 0.05
    torch.testing.assert_close(scores["loss"], sum(scores[f"loss_noise_{level}"] for level in (1, 2, 3, 4)) / 4)


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_validation_weighs_times_as_training_does(time_sampling: str) -> None:
    """Over many pictures, the quantiles of its times are those of the distribution that training draws from."""
    module, times = diffusion(awake=False, objective="flow", time_sampling=time_sampling), list[Tensor]()
    losses = module.losses

    def watched(net: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
        times.append(t)
        return losses(net, x0, eps, t, label)

    module.losses = watched  # type: ignore[method-assign]
    module.scores(Batch(pictures(1).expand(400, -1, -1, -1), torch.zeros(400, dtype=torch.int64), torch.arange(400)))
    s = torch.cat(times).double().div(100).sort().values
    probability = s if time_sampling == "uniform" else torch.special.ndtr(s.logit())
    torch.testing.assert_close(probability, torch.linspace(0, 1, 1600, dtype=torch.float64), rtol=0, atol=0.03)


def test_the_average_is_what_is_scored_and_samples_and_the_weights_are_what_is_trained() -> None:
    module, data = drawing(diffusion(ema_decay=0.9)), batch()
    assert module.ema is not None
    with torch.inference_mode():
        before = module.scores(data), samples(module, 2, seed=0)
    trained = module.training_step(data, 0)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.1)
    with torch.inference_mode():
        after = module.scores(data), samples(module, 2, seed=0)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not torch.allclose(module.training_step(data, 0), trained)
    module.ema.update(module.net, step=10**6)
    with torch.inference_mode():
        assert not torch.allclose(module.scores(data)["loss"], before[0]["loss"])
        assert not torch.allclose(samples(module, 2, seed=0), before[1])
    (group,) = module.configure_optimizers().param_groups
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in module.net.parameters()}


def test_training_pictures_are_scored_beside_the_held_out_ones_and_forgotten() -> None:
    module = diffusion()
    module.validation_step(batch(4), 0, 0)
    module.validation_step(Batch(pictures(6)[4:], torch.tensor([1, 2]), torch.tensor([4, 5])), 0, 1)
    means = module.summarise(module.val_means.compute())
    held_out, training = module.scores(batch(6)), ("loss_train", "loss_train_noise_1", "loss_train_noise_4")
    for name in training:
        scores = held_out[name.replace("loss_train", "loss")]
        assert means[name] == pytest.approx(scores[4:].mean().item(), rel=1e-4)
        assert means[name.replace("loss_train", "loss")] == pytest.approx(scores[:4].mean().item(), rel=1e-4)
    assert set(module.summarise({"loss": 1.0})) == {"loss"}


# -- with a Trainer

TINY = (
    "model=latent_ddpm",
    "autoencoder=none",
    "data=procedural",
    "data.num_images=40",
    "data.image_size=28",
    "data.batch_size=8",
    "debug=tiny",
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=0",
    "model.network.channels=8",
    "model.network.multipliers=[1,1]",
    "model.network.num_blocks=1",
    "model.network.attention_resolutions=[]",
    "model.sampling.steps=2",
    "model.lr_warmup_steps=0",
    "model.optimizer.lr=1e-3",
    "callbacks.images.num_samples=1",
)


def fit(run: Path, *overrides: str) -> LatentDDPMModule:
    config = resolve(checked([*TINY, *overrides])[0])
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, num_classes=len(data.class_names))
    assert isinstance(module, LatentDDPMModule)
    start = copy.deepcopy(module.net.state_dict())
    build_trainer(config, RunFolder(run), None).fit(module, datamodule=data)
    assert any(not torch.equal(value, start[name]) for name, value in module.net.state_dict().items())
    return module


def test_two_parts_of_four_pictures_are_one_batch_of_eight(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times, noise and class dropout belong to the picture's place in the optimiser step, and so do weights and averages."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    # plain gradient descent: Adam would turn the rounding of a gradient that is all but 0 into a step of full length
    descent = ("model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.1", "model.class_dropout=0.5")
    whole = fit(tmp_path / "whole", *descent)
    parts = fit(tmp_path / "parts", *descent, "trainer.accumulate_grad_batches=2")
    assert whole.optimizer_steps == parts.optimizer_steps == 3
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("labels", "rows"), [([3, 3], 2), ([3, 1], 4)])
def test_samples_without_a_class_cost_one_evaluation_a_step(labels: list[int], rows: int) -> None:
    """Guidance has nothing to compare with; one class among them, and all rows are evaluated twice."""
    module, seen = diffusion().eval(), list[int]()
    module.net.register_forward_hook(lambda net, inputs, output: seen.append(len(inputs[0])))
    with torch.inference_mode():
        module.denoised(range(2), torch.tensor(labels), 0, replace(module.sampling, guidance_scale=3.0))
    assert seen == [rows] * module.sampling.steps
