import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.losses.kl import kl_standard_normal
from flowergen.losses.perceptual import feature_distance, normalised_feature_distance
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.nn.perceptual import VGG16Features
from flowergen.nn.posterior import Posterior
from flowergen.randomness import initialisation

DEFAULTS: dict[str, Any] = {
    "image_size": 32,
    "seed": 0,
    "num_classes": 3,
    "latent": {"kind": "spatial", "factor": "auto", "channels": 4, "dim": 8},
    "blocks": {
        "channels": [8, 16],
        "num_blocks": [0, 1],
        "norm": "layer",
        "activation": "silu",
        "channel_attention": True,
        "spatial_attention": True,
        "self_attention": True,
    },
    "reconstruction": "l1",
    "beta": 0.01,
    "beta_warmup_steps": 0,
    "perceptual": "discriminator",
    "perceptual_weight": 0.7,
    "perceptual_layers": ["relu1_2", "relu2_2"],
    "weights_dir": "",
    "adversarial": "hinge",
    "adversarial_weight": 0.5,
    "adaptive_weight_max": 10.0,
    "adversarial_start_steps": 0,
    "adversarial_ramp_steps": 0,
    "diff_augment": True,
    "discriminator": {"channels": 8, "num_halvings": "auto", "norm": "group"},
    "class_weight": 0.0,
    "center_weight": 0.0,
    "center_margin": 2.0,
    "guard": "warn",
    "guard_margin": 1.0,
    "optimizer": partial(torch.optim.Adam, lr=2e-3),
    "discriminator_optimizer": partial(torch.optim.Adam, lr=2e-3),
    "lr_schedule": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": None,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
}


def make(**changes: Any) -> VAEGANModule:
    """Without a trainer: a backward pass is a backward pass."""
    with initialisation(0):
        module = VAEGANModule(**(DEFAULTS | changes))
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    return module


def pictures(num: int, size: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.random((num, 3, 5, 5), dtype=np.float32))
    return F.interpolate(corners, size=size, mode="bilinear", align_corners=True)


def forward(module: VAEGANModule, num: int = 4) -> tuple[torch.Tensor, Posterior, torch.Tensor, torch.Tensor]:
    """x in [-1, 1], q(z|x), what the last layer is given, x_hat."""
    x = 2 * pictures(num) - 1
    posterior = module.net.encoder(x)
    h = module.net.decoder.features(posterior.mean)
    return x, posterior, h, module.net.decoder.to_picture(h)


def has_gradient(parameters: Any) -> list[bool]:
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters]


def is_without(parameters: Any) -> bool:
    return all(p.grad is None for p in parameters)


LABEL = torch.tensor([0, 1, 2, -1])


@pytest.mark.parametrize("perceptual", ["discriminator", "none"])
@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_each_player_s_phase_leaves_gradients_on_its_own_weights_alone(perceptual: str, norm: str) -> None:
    module = make(perceptual=perceptual, discriminator={"channels": 8, "num_halvings": 1, "norm": norm})
    adversary = module.adversary
    assert adversary is not None
    x, posterior, h, x_hat = forward(module)
    u = torch.rand(4, 7)
    real = adversary.judge(x, u)
    module._generator_phase(adversary, x, LABEL, posterior, h, x_hat, real, u)
    assert is_without(adversary.parameters())
    assert all(p.requires_grad for p in adversary.parameters())
    assert all(p.grad is not None for p in module.net.parameters())
    for ends in (module.net.encoder.layers[0], module.net.decoder.to_picture):  # branches that start at zero lie between
        assert all(has_gradient(ends.parameters()))

    module.zero_grad()
    module._discriminator_phase(adversary, real, x_hat.detach(), u)
    assert is_without(module.net.parameters())
    assert all(has_gradient(p for p in adversary.parameters() if p.ndim > 1))


def test_the_discriminator_is_given_the_detached_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward of the autoencoder serves both players."""
    module, seen, forwards = make(), [], []
    monkeypatch.setattr(type(module), "step_draw", lambda self, draw, num, shape, batch_idx, purpose: torch.rand(num, *shape))
    monkeypatch.setattr(type(module), "_step", lambda self: None)
    phase = VAEGANModule._discriminator_phase
    monkeypatch.setattr(
        type(module), "_discriminator_phase", lambda self, a, r, x, u: seen.append(x) or phase(self, a, r, x, u)
    )
    module.net.encoder.register_forward_hook(lambda *_: forwards.append("encoder"))
    module.net.decoder.to_picture.register_forward_hook(lambda *_: forwards.append("decoder"))
    module.training_step(Batch(pictures(4), LABEL, torch.arange(4)), 0)
    assert not seen[0].requires_grad
    assert forwards == ["encoder", "decoder"]


@pytest.mark.parametrize("reconstruction", ["l1", "mse"])
def test_the_objective_is_the_sum_that_the_docs_write_down(reconstruction: str) -> None:
    module = make(reconstruction=reconstruction, class_weight=0.3, center_weight=0.2)
    adversary = module.adversary
    assert adversary is not None
    x, posterior, _, x_hat = forward(module)
    real, fake = adversary.judge(x), adversary.judge(x_hat)
    terms = module.objective(x, LABEL, posterior, x_hat, (real, fake))

    difference = (x_hat - x).abs() if reconstruction == "l1" else (x_hat - x).square()
    loss = difference.mean((1, 2, 3)) + 0.01 * kl_standard_normal(*posterior) / (3 * 32 * 32)
    loss = loss + 0.7 * feature_distance(fake.features, real.features)
    pooled = posterior.mean.mean((2, 3))
    log_p = module.class_head(pooled).log_softmax(1)
    loss[:3] = loss[:3] - 0.3 * log_p[torch.arange(3), LABEL[:3]]
    distances = torch.pdist(module.centers)
    loss[:3] = loss[:3] + 0.2 * 0.5 * (pooled[:3] - module.centers).square().sum(1)
    loss = loss + 0.2 * (2.0 - distances).clamp_min(0).square().mean()
    torch.testing.assert_close(terms["loss"], loss)
    game = module._with_game(terms, adversary.game(real.logits, fake.logits))
    torch.testing.assert_close(game["loss"], (loss - 0.5 * 1.0 * fake.logits.mean((1, 2, 3))).detach())


def test_pictures_without_a_label_add_nothing_to_class_and_centre_losses() -> None:
    module = make(class_weight=1.0, center_weight=1.0, center_margin=0.0, perceptual="none", adversarial_weight=0.0)
    x, posterior, _, x_hat = forward(module)
    terms = module.objective(x, torch.full((4,), -1), posterior, x_hat, None)
    torch.testing.assert_close(terms["loss_class"], torch.zeros(4))
    torch.testing.assert_close(terms["loss_center"], torch.zeros(4))
    (terms["loss_class"] + terms["loss_center"]).sum().backward()
    for parameter in (module.centers, module.class_head.weight, *module.net.encoder.parameters()):
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("perceptual", ["discriminator", "none"])
def test_the_adaptive_weight_is_measured_at_the_last_layer(perceptual: str) -> None:
    """Against two more backward passes by autograd, as VQGAN takes them."""
    module = make(perceptual=perceptual, adversarial_ramp_steps=4, adaptive_weight_max=1e6)
    adversary = module.adversary
    assert adversary is not None
    x, posterior, h, x_hat = forward(module)
    u, weight = torch.rand(4, 7), module.net.decoder.to_picture.weight
    real = adversary.judge(x, u)
    judgements = (real, adversary.judge(x_hat, u)) if perceptual == "discriminator" else None
    nll = module.objective(x, LABEL, posterior, x_hat, judgements)["loss"].mean()
    (grad_nll,) = torch.autograd.grad(nll, weight, retain_graph=True)
    (grad_adversarial,) = torch.autograd.grad(-adversary.judge(x_hat, u).logits.mean(), weight, retain_graph=True)

    module._generator_phase(adversary, x, LABEL, posterior, h, x_hat, real, u)
    assert adversary.adaptive_weight == 1.0, "it is for the next step"
    adversary.update_adaptive_weight(world_size=1)
    torch.testing.assert_close(adversary.adaptive_weight, grad_nll.norm() / grad_adversarial.norm(), rtol=1e-4, atol=0)
    assert "adversary.adaptive_weight" in module.state_dict()


def test_before_its_start_the_generator_hears_nothing_and_the_discriminator_learns() -> None:
    module = make(adversarial_start_steps=5, perceptual="none")
    adversary = module.adversary
    assert adversary is not None
    x, posterior, h, x_hat = forward(module)
    u = torch.rand(4, 7)
    real = adversary.judge(x, u)
    terms = module._generator_phase(adversary, x, LABEL, posterior, h, x_hat, real, u)
    heard = [p.grad.clone() for p in module.net.parameters() if p.grad is not None]
    module.zero_grad()
    x, posterior, h, x_hat = forward(module)
    module.objective(x, LABEL, posterior, x_hat, None)["loss"].mean().backward()
    for a, b in zip(heard, module.net.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)
    module._discriminator_phase(adversary, real, x_hat.detach(), u)
    assert all(has_gradient(p for p in adversary.parameters() if p.ndim > 1))
    assert terms["loss"].shape == (4,)


def test_the_discriminator_alone_learns_to_tell_pictures_from_smears() -> None:
    module = make()
    adversary = module.adversary
    assert adversary is not None
    x = 2 * pictures(16) - 1 + 0.3 * torch.randn(16, 3, 32, 32)
    smear = F.avg_pool2d(x, 5, 1, 2)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=2e-3)
    for _ in range(60):
        u = torch.rand(16, 7)
        module._discriminator_phase(adversary, adversary.judge(x, u), smear, u)
        optimizer.step()
        optimizer.zero_grad()
    game = adversary.game(adversary.judge(x).logits, adversary.judge(smear).logits)
    assert game["discriminator_accuracy"].mean() > 0.9
    assert game["logit_gap"].mean() > 1


@pytest.mark.parametrize("kind", ["spatial", "flat"])
def test_it_overfits_one_batch_without_a_game(kind: str) -> None:
    """Eight gradients, 150 steps: at least 25 dB, where the mean picture of the batch gives under 15."""
    module = make(latent={"kind": kind, "factor": "auto", "channels": 4, "dim": 32}, beta=0.0, perceptual="none",
                  adversarial_weight=0.0)  # fmt: skip
    assert module.adversary is None
    (optimizer,) = module.configure_optimizers()  # type: ignore[misc]
    x = pictures(8)
    for _ in range(150):
        posterior = module.net.encoder(2 * x - 1)
        loss = module.objective(2 * x - 1, LABEL.repeat(2), posterior, module.net.decoder(posterior.mean), None)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mse = (module.decode(module.encode(x).mean) - x).square().mean().item()
    assert -10 * math.log10(mse) > 25 > -10 * math.log10((x.mean(0) - x).square().mean().item()) + 10


def test_vgg_compares_pictures_in_0_to_1_and_stays_out_of_checkpoints(weights_dir: Path) -> None:
    module = make(perceptual="vgg16", weights_dir=str(weights_dir))
    x, posterior, _, x_hat = forward(module)
    terms = module.objective(x, LABEL, posterior, x_hat, None)
    vgg = VGG16Features(torch.load(weights_dir / "vgg16-397923af.pth", weights_only=True), ["relu1_2", "relu2_2"])
    expected = normalised_feature_distance(vgg((x_hat + 1) / 2), vgg((x + 1) / 2))
    torch.testing.assert_close(terms["loss_perceptual"], expected)
    terms["loss_perceptual"].sum().backward()
    assert sum(has_gradient(module.net.decoder.parameters())) > 0
    assert not any("perceptual" in key or "features" in key for key in module.state_dict())
    assert not any(parameter.numel() == 64 * 3 * 9 for parameter in module.parameters() if parameter.shape[:2] == (64, 3))


def test_scores_do_not_depend_on_the_batch_nor_on_augmentation() -> None:
    module = make(ema_decay=0.9, class_weight=0.1).eval()
    batch = Batch(pictures(4), LABEL, torch.arange(10, 14))
    together = module.scores(batch)
    alone = module.scores(Batch(batch.image[2:3], LABEL[2:3], batch.index[2:3]))
    for name, values in together.items():
        if values.ndim:
            torch.testing.assert_close(values[2:3], alone[name], rtol=1e-4, atol=1e-5, msg=name)
    assert {"l1_perceptual", "psnr", "loss_class", "logit_gap", "discriminator_accuracy"} <= together.keys()
    summary = module.summarise({name: values.mean().item() for name, values in together.items()})
    assert {"elbo", "sharpness", "active_units"} <= summary.keys()
    assert 0 < summary["sharpness"] < 10


def test_what_ranks_epochs_does_not_move_with_the_discriminator(weights_dir: Path) -> None:
    batch = Batch(pictures(4), LABEL, torch.arange(4))
    for perceptual, fixed in (("discriminator", False), ("vgg16", True)):
        module = make(perceptual=perceptual, weights_dir=str(weights_dir)).eval()
        before = module.scores(batch)
        with torch.no_grad():
            for parameter in module.adversary.parameters():  # type: ignore[union-attr]
                parameter.mul_(3)
        after = module.scores(batch)
        torch.testing.assert_close(before["l1_perceptual"], after["l1_perceptual"])
        distance = 0.7 * before["loss_perceptual"] if fixed else 1 - before["ssim"]
        torch.testing.assert_close(before["l1_perceptual"], before["loss_reconstruction"] + distance)


def test_only_encoder_and_decoder_are_averaged() -> None:
    module = make(ema_decay=0.9, class_weight=0.1, center_weight=0.1)
    assert module.ema is not None
    assert len(list(module.ema.parameters())) == len(list(module.net.parameters()))
    before = module.sample(2, seed=0)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(module.sample(2, seed=0), before)
    generator, judge = module.configure_optimizers()  # type: ignore[misc]
    own = {id(p) for group in generator.param_groups for p in group["params"]}
    assert own == {id(p) for p in (*module.net.parameters(), *module.class_head.parameters(), module.centers)}
    assert {id(p) for group in judge.param_groups for p in group["params"]} == {id(p) for p in module.adversary.parameters()}  # type: ignore[union-attr]


def test_samples_depend_on_seed_and_number_alone() -> None:
    module = make().eval()
    torch.testing.assert_close(module.sample(5, seed=1)[:3], module.sample(3, seed=1), rtol=0, atol=1e-4)
    assert not torch.allclose(module.sample(1, seed=1), module.sample(1, seed=2))


def test_only_epochs_at_the_full_weight_that_the_guard_accepts_may_be_best() -> None:
    module = make(adversarial_start_steps=10, adversarial_ramp_steps=10)
    module.total_steps = 100
    seen = []
    for step in (9, 19, 20, 50):
        module.optimizer_steps = step
        seen.append(module.may_be_best)
    assert seen == [False, False, True, True]
    module.guard.failed = True
    assert not module.may_be_best
    module.guard.failed, module.total_steps, module.optimizer_steps = False, 15, 15
    assert module.may_be_best, "a ramp that the run ends within"
    assert make(adversarial_weight=0.0, adversarial_start_steps=10).may_be_best


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(UserError, match="factor of 8 does not divide pictures of 36 px"):
        make(image_size=36, latent={"kind": "spatial", "factor": 8, "channels": 4, "dim": 8})
    for weight in ("class_weight", "center_weight"):
        with pytest.raises(UserError, match="need labels, and the data has none"):
            make(num_classes=0, **{weight: 0.1})
    assert isinstance(make(num_classes=0), nn.Module)
