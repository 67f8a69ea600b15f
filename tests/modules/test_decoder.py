"""The decoder's training step on a diffusion model that has learnt nothing."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.losses.diff_augment import NUM_DRAWS, diff_augment, zoom
from flowergen.losses.perceptual import normalised_feature_distance
from flowergen.modules.decoder import DecoderModule
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.pretrained_weights import load_efficientnet
from flowergen.randomness import initialisation, normal, uniform
from tests.modules.test_vae_gan import SIZE, batch
from tests.modules.test_vae_gan import make as make_vae_gan
from tests.tiny_models import DIFFUSION, TinyAutoencoder, wake
from tests.tiny_models import diffusion as make_diffusion

OPTIONS: dict[str, Any] = {
    "image_size": SIZE,
    "seed": 0,
    "num_classes": 3,
    "num_latents": 6,
    "reconstruction_weight": 0.7,
    "perceptual_weight": 0.3,
    "adversarial_weight": 0.2,
    "channels": 4,
    "optimizer": partial(torch.optim.Adam, lr=1e-2),
    "discriminator_optimizer": partial(torch.optim.Adam, lr=1e-2),
    "lr_schedule": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": 0.5,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
}


def make(**changes: Any) -> DecoderModule:
    """Fed with six latents of three classes and none; backward passes and steps need no Trainer."""
    diffusion = make_diffusion(awake=False, autoencoder=make_vae_gan(ema_decay=0.5))
    with initialisation(0):
        module = DecoderModule(**{**OPTIONS, "diffusion": diffusion, **changes})
    wake(module.net)
    module.ema.net.load_state_dict(module.net.state_dict())
    module.use_samples(torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 3]))
    module.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign, assignment]
    module.step_optimizers = lambda: 0.0  # type: ignore[method-assign]
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_rank=0, log_every_n_steps=1000, accumulate_grad_batches=1
    )
    return module


def test_a_training_step_calls_the_compiled_decoder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    calls: list[int] = []

    def counting(graph: torch.fx.GraphModule, example: Any) -> Any:
        def run(*args: Any) -> Any:
            calls.append(len(args))
            return graph(*args)

        return run

    module = make()
    monkeypatch.setattr(DecoderModule, "global_rank", 0)
    for network in module.networks_to_compile:
        network._compiled_call_impl = torch.compile(network._call_impl, backend=counting)
    module.training_step(batch(5), 0)
    assert len(calls) == 1


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1).mean()


def test_a_training_step_gives_each_network_the_gradient_of_its_documented_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down here again, with autograd's own gradients; the frozen model gets none."""
    module, pictures = make(), batch(5)
    monkeypatch.setattr(DecoderModule, "global_rank", 0)
    module.training_step(pictures, 0)
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is None for parameter in module.denoising_model.parameters())

    again = make()
    net = load_efficientnet("lite0", "a test")
    x, draws = 2 * pictures.image - 1, partial(uniform, seed=0, step=0)
    chosen = (draws((5,), purpose="sample") * 6).long()
    with torch.no_grad():
        z = again.encode(pictures.image[::4]).sample(normal((5, 2, 4, 4), seed=0, step=0, purpose="posterior")[::4])
    sampled, x_hat = again.net(again.latents[chosen]), again.net(z)
    u_real, u = draws((5, NUM_DRAWS + 3), purpose="augmentation"), draws((5, NUM_DRAWS + 3), purpose="augmentation of samples")
    features_real = net((zoom(diff_augment(x, u_real[:, :NUM_DRAWS]), u_real[:, NUM_DRAWS:]) + 1) / 2)
    features_sampled = net((zoom(diff_augment(sampled, u[:, :NUM_DRAWS]), u[:, NUM_DRAWS:]) + 1) / 2)
    cut, own, of_sampled = [maps.detach() for maps in features_sampled], again.discriminator, again.labels[chosen]
    classes = again.class_projection
    assert classes is not None
    loss = hinge(own(features_real).logits, own(cut).logits)
    loss = loss + hinge(classes(features_real[-1], pictures.label), classes(cut[-1], of_sampled))
    heads = {name: parameter for name, parameter in again.named_parameters() if name.startswith(("discr", "class"))}
    expected = dict(zip(heads, torch.autograd.grad(loss, list(heads.values())), strict=True))
    error = (x_hat - x[::4]).abs().mean()
    distance = normalised_feature_distance(net((x_hat + 1) / 2), net((x[::4] + 1) / 2)).mean()
    adversarial = -own(features_sampled).logits.mean() - classes(features_sampled[-1], of_sampled).mean()
    decoder = {name: parameter for name, parameter in again.named_parameters() if name.startswith("net.")}
    loss = 0.7 * (error + 0.3 * distance) + 0.2 * adversarial
    expected |= dict(zip(decoder, torch.autograd.grad(loss, list(decoder.values())), strict=True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    means = module.epoch_means.compute()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert means["loss_reconstruction"] == pytest.approx(error.item(), rel=1e-4)


def test_the_diffusion_model_decodes_with_the_averaged_decoder_and_encodes_as_before() -> None:
    module, x = make(), batch(3).image
    encoded = make_diffusion(awake=False, autoencoder=make_vae_gan(ema_decay=0.5)).encode(x).mean
    torch.testing.assert_close(module.encode(x).mean, encoded)
    z = torch.randn(3, 2, 4, 4)
    before = module.denoising_model.decode(z)
    torch.testing.assert_close(before, ((module.ema.net(z) + 1) / 2).clamp(0, 1))
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(module.denoising_model.decode(z), before)
    module.ema.update(module.net, 10)
    assert not torch.allclose(module.denoising_model.decode(z), before)
    assert module.inference_net is module.ema.net


def test_its_state_is_the_decoder_and_the_discriminator_alone() -> None:
    module = make()
    assert {name.partition(".")[0] for name in module.state_dict()} == {"net", "ema", "discriminator", "class_projection"}
    owned = [{id(p) for group in o.param_groups for p in group["params"]} for o in module.configure_optimizers()]  # type: ignore[union-attr]
    assert owned[0] == {id(p) for p in module.net.parameters()}
    assert owned[1] == {id(p) for p in module.discriminator_parameters}


def test_without_classes_there_is_no_class_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderModule, "global_rank", 0)
    diffusion = make_diffusion(awake=False, autoencoder=make_vae_gan(num_classes=0), num_classes=0)
    module = make(num_classes=0, diffusion=diffusion)
    module.use_samples(module.latents, torch.zeros(6, dtype=torch.int64))
    assert module.class_projection is None
    module.training_step(Batch(batch(5).image, torch.full((5,), -1), torch.arange(5)), 0)
    assert all(p.grad is not None for p in module.discriminator_parameters)


@pytest.mark.parametrize(("autoencoder", "words"), [(None, "works on pixels"), (TinyAutoencoder(), "TinyAutoencoder")])
def test_a_model_without_a_vae_gan_s_decoder_is_refused(autoencoder: nn.Module | None, words: str) -> None:
    with initialisation(0):
        diffusion = LatentDDPMModule(**{**DIFFUSION, "autoencoder": autoencoder})
    with pytest.raises(UserError, match=words):
        make(diffusion=diffusion)


def test_the_checkpoint_of_another_diffusion_model_is_refused() -> None:
    module, checkpoint = make(), dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    module.optimizer_steps = checkpoint["flowergen"]["optimizer_steps"] = 7
    module.on_load_checkpoint(checkpoint)
    assert "decoder trained on samples for 7 steps" in module.denoising_model.summary()
    assert module.denoising_model.features_trained_with == "EfficientNet-Lite0"
    other = make_diffusion(awake=True, autoencoder=make_vae_gan(ema_decay=0.5))
    with pytest.raises(UserError, match="a diffusion model other than the one in its run folder"):
        make(diffusion=other).on_load_checkpoint(checkpoint)
