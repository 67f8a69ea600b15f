import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vgg import cfgs, make_layers

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.losses.diff_augment import NUM_DRAWS, diff_augment
from flowergen.modules.guard import Guard
from flowergen.modules.pretrained_weights import VGG16_FILE, load_efficientnet
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.nn.discriminator import DiscriminatorOutput
from flowergen.nn.perceptual import VGG16Features
from flowergen.nn.posterior import Posterior
from flowergen.nn.projected_discriminator import ProjectedDiscriminator
from flowergen.randomness import initialisation, normal, uniform
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer

SIZE = 16
PATCH: dict[str, Any] = {"kind": "patch", "channels": 4, "num_halvings": 1, "norm": "group"}
PROJECTED = PATCH | {"kind": "projected"}
DEFAULTS: dict[str, Any] = {
    "image_size": SIZE,
    "seed": 0,
    "num_classes": 3,
    "latent": {"kind": "spatial", "factor": 4, "channels": 2, "dim": 6},
    "blocks": {
        "channels": [4, 8],
        "num_blocks": [1],
        "norm": "layer",
        "activation": "silu",
        "channel_attention": True,
        "spatial_attention": True,
        "self_attention": True,
    },
    "reconstruction": "l1",
    "beta": 0.5,
    "beta_warmup_steps": 0,
    "perceptual": "none",
    "perceptual_weight": 0.7,
    "perceptual_layers": ["relu1_2", "relu2_2"],
    "weights_dir": "/no/such/folder",
    "adversarial": "hinge",
    "adversarial_weight": 0.5,
    "adaptive_weight_max": 1e4,
    "adversarial_start_steps": 10,
    "adversarial_ramp_steps": 4,
    "diff_augment": True,
    "discriminator": PATCH,
    "class_weight": 0.0,
    "center_weight": 0.0,
    "center_margin": 2.0,
    "guard": "warn",
    "guard_margin": 2.0,
    "optimizer": partial(torch.optim.Adam, lr=2e-3),
    "discriminator_optimizer": partial(torch.optim.Adam, lr=2e-3),
    "lr_schedule": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": None,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
}
ADVERSARIAL_STEP = 12  # a step in mid-ramp: three quarters of the weight


def make(step: int = 0, **changes: Any) -> VAEGANModule:
    """Weights that start at zero get a value, so that every part has a gradient; backward passes need no Trainer."""
    with initialisation(0):
        module = VAEGANModule(**{**DEFAULTS, **changes})
        for parameter in module.net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    module.optimizer_steps = step
    module.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign, assignment]
    return module


def pictures(num: int, size: int = SIZE) -> Tensor:
    """Smooth, distinct colour gradients in [0, 1]."""
    corners = torch.rand(num, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return F.interpolate(corners, size=size, mode="bilinear", align_corners=True)


def batch(num: int = 3) -> Batch:
    return Batch(pictures(num), torch.arange(num) % 3, torch.arange(num))


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-16 with random weights, in torchvision's format."""
    torch.manual_seed(0)
    net = make_layers(cfgs["D"])
    for parameter in net.parameters():
        nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    folder = tmp_path_factory.mktemp("weights")
    torch.save({f"features.{name}": value for name, value in net.state_dict().items()}, folder / VGG16_FILE)
    return folder


class Turn(NamedTuple):
    """What both networks are given."""

    x: Tensor
    label: Tensor
    posterior: Posterior
    h: Tensor
    x_hat: Tensor
    u: Tensor


def turn(module: VAEGANModule) -> Turn:
    g = torch.Generator().manual_seed(1)
    x = 2 * pictures(3) - 1
    posterior = module.net.encoder(x)
    h = module.net.decoder.features(posterior.sample(torch.randn(posterior.mean.shape, generator=g)))
    u = torch.rand(3, NUM_DRAWS, generator=g)
    return Turn(x, torch.arange(3), posterior, h, module.net.decoder.picture(h), u)


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def all_set(module: nn.Module) -> bool:
    """Every parameter has a gradient, and but for some that nothing depends on (the keys' bias) it is not 0."""
    grads = gradients(module)
    return all(g is not None for g in grads) and sum(g.abs().max() > 0 for g in grads if g is not None) > 0.8 * len(grads)


def none_set(module: nn.Module) -> bool:
    return all(gradient is None for gradient in gradients(module))


# -- who owns which gradients


@pytest.mark.parametrize("kind", ["patch", "projected"])
@pytest.mark.parametrize("norm", ["group", "spectral"])
@pytest.mark.parametrize("step", [0, ADVERSARIAL_STEP])
@pytest.mark.parametrize("perceptual", ["none", "discriminator", "efficientnet"])
def test_each_backward_pass_gives_gradients_to_its_own_network_and_none_to_the_other(
    perceptual: str, step: int, norm: str, kind: str
) -> None:
    """Before the adversarial start and after it; neither loss gives gradients to the other network through the features."""
    module = make(step, perceptual=perceptual, discriminator=PATCH | {"norm": norm, "kind": kind})
    assert module.adversary is not None
    adversary: nn.Module = module.adversary
    who: list[tuple[bool, bool, bool, bool]] = []

    def backward(loss: Tensor, **options: Any) -> None:
        loss.backward(**options)
        who.append((all_set(adversary), none_set(adversary), all_set(module.net), none_set(module.net)))
        module.zero_grad(set_to_none=True)

    module.manual_backward = backward  # type: ignore[method-assign, assignment]
    module._adversarial_step(module.adversary, *turn(module))
    assert who == [(True, False, False, True), (False, True, True, False)]


@pytest.mark.parametrize("kind", ["patch", "projected"])
def test_the_flops_of_an_adversarial_step_can_be_counted(kind: str) -> None:
    """By torch's counter, as scripts/benchmark_train.py does; its hooks refuse some ways to a gradient."""
    module = make(ADVERSARIAL_STEP, discriminator=PATCH | {"kind": kind})
    assert module.adversary is not None
    given = turn(module)
    with FlopCounterMode(display=False) as counter:
        module._adversarial_step(module.adversary, *given)
    assert counter.get_total_flops() > 0


def training_step(module: VAEGANModule, data: Batch) -> None:
    """The first of two parts: both backward passes, no optimiser."""
    module.accumulate_grad_batches = 2

    def draw(source: Callable[..., Tensor], num: int, shape: tuple[int, ...], batch_idx: int, purpose: str) -> Tensor:
        return source((num, *shape), seed=module.seed, step=module.optimizer_steps, purpose=purpose)

    module.draw_for_step = draw  # type: ignore[method-assign, assignment]
    module.training_step(data, 0)


def reconstruction_of(module: VAEGANModule, x: Tensor) -> tuple[Posterior, Tensor]:
    """The draw of ``training_step``, as it is documented."""
    posterior = module.net.encoder(x)
    eps = normal((len(x), *module.latent_shape), seed=0, step=module.optimizer_steps, purpose="posterior")
    return posterior, module.net.decoder(posterior.mean + (posterior.logvar / 2).exp() * eps)


def augmentation_of(module: VAEGANModule, num: int) -> Tensor:
    return uniform((num, NUM_DRAWS), seed=0, step=module.optimizer_steps, purpose="augmentation")


def discriminator_of(module: VAEGANModule) -> Callable[[Tensor], DiscriminatorOutput]:
    """The discriminator as a function of pictures in [-1, 1], without augmentation."""
    assert module.adversary is not None
    net: Any = module.adversary.discriminator
    if isinstance(net, ProjectedDiscriminator):
        return lambda x: net(load_efficientnet("lite0", "the test")((x + 1) / 2))
    return lambda x: net(x)


@pytest.mark.parametrize("kind", ["patch", "projected"])
@pytest.mark.parametrize("adversarial", ["hinge", "non_saturating"])
@pytest.mark.parametrize("perceptual", ["none", "discriminator", "efficientnet"])
def test_a_training_step_gives_each_network_the_gradient_of_its_own_loss(perceptual: str, adversarial: str, kind: str) -> None:
    """The objectives written out again and differentiated by autograd, each for its own network; half of it, in two parts.

    The reconstruction is detached for the discriminator, whose gradient would else be in the generator's.
    """
    module = make(ADVERSARIAL_STEP, perceptual=perceptual, adversarial=adversarial, discriminator=PATCH | {"kind": kind})
    assert module.adversary is not None
    module.adversary.adaptive_weight.fill_(3.0)
    data = batch()
    training_step(module, data)

    x, discriminator = 2 * data.image - 1, discriminator_of(module)
    posterior, x_hat = reconstruction_of(module, x)
    u = augmentation_of(module, 3)
    real, fake = discriminator(diff_augment(x, u)), discriminator(diff_augment(x_hat, u))
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - posterior.logvar - 1).sum((1, 2, 3))
    loss = (x_hat - x).abs().mean((1, 2, 3)) + 0.5 * kl / (3 * SIZE**2)
    if perceptual == "discriminator":
        distances = [(a - b).square().mean((1, 2, 3)) for a, b in zip(fake.features, real.features, strict=True)]
        loss = loss + 0.7 * sum(distances) / len(distances)
    if perceptual == "efficientnet":
        net = load_efficientnet("lite0", "the test")
        a, b = (diff_augment(x, u), diff_augment(x_hat, u)) if kind == "projected" else (x, x_hat)
        pairs = zip(net((a + 1) / 2), net((b + 1) / 2), strict=True)
        loss = loss + 0.7 * sum(2 - 2 * F.cosine_similarity(*pair).mean((1, 2)) for pair in pairs) / 2
    adversarial_loss = -fake.logits if adversarial == "hinge" else F.softplus(-fake.logits)
    generator_loss = (loss + 0.5 * 0.75 * 3.0 * adversarial_loss.mean((1, 2, 3))).mean() / 2
    if adversarial == "hinge":
        discriminator_loss = (1 - real.logits).relu() + (1 + fake.logits).relu()
    else:
        discriminator_loss = F.softplus(-real.logits) + F.softplus(fake.logits)
    networks: list[tuple[nn.Module, Tensor]] = [
        (module.net, generator_loss),
        (module.adversary.discriminator, discriminator_loss.mean() / 2 / 2),
    ]
    atol = 1e-5 if kind == "projected" else 1e-6  # sixty layers more in float32
    for network, own_loss in networks:
        expected = torch.autograd.grad(own_loss, list(network.parameters()), retain_graph=True)
        for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            assert parameter.grad is not None, name
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=1e-3, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("kind", ["patch", "projected"])
@pytest.mark.parametrize("stem_px", [1, 2])
@pytest.mark.parametrize("factor", [1.0, 5.0])
def test_the_adaptive_weight_is_measured_at_the_decoder_s_last_layer(factor: float, stem_px: int, kind: str) -> None:
    """By autograd of both losses by ``to_picture.weight``, whatever the weight was when it was measured."""
    module = make(ADVERSARIAL_STEP, blocks=DEFAULTS["blocks"] | {"stem_px": stem_px}, discriminator=PATCH | {"kind": kind})
    assert module.adversary is not None
    module.adversary.adaptive_weight.fill_(factor)
    data = batch()
    training_step(module, data)
    x, discriminator, last = 2 * data.image - 1, discriminator_of(module), module.net.decoder.to_picture.weight
    posterior, x_hat = reconstruction_of(module, x)
    nll = module.objective(x, data.label, posterior, x_hat, None)["loss"].mean()
    adversarial = -discriminator(diff_augment(x_hat, augmentation_of(module, 3))).logits.mean()
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, adversarial)]
    module.adversary.update_adaptive_weight(world_size=1)
    assert module.adversary.adaptive_weight.item() == pytest.approx((norms[0] / norms[1]).item(), rel=1e-3)


def test_before_adversarial_training_the_adaptive_weight_is_not_measured_and_the_generator_unaffected() -> None:
    told, not_told = make(9), make(9, adversarial_weight=5.0)
    for module in (told, not_told):
        training_step(module, batch())
        assert module.adversary is not None
        module.adversary.update_adaptive_weight(world_size=1)
        assert module.adversary.adaptive_weight.item() == 1
        assert all_set(module.adversary), "the discriminator trains from the beginning"
    for a, b in zip(gradients(told.net), gradients(not_told.net), strict=True):
        assert torch.equal(a, b)


# -- the objective


@pytest.mark.parametrize("reconstruction", ["l1", "mse"])
@pytest.mark.parametrize("perceptual", ["none", "discriminator", "vgg16", "efficientnet"])
def test_the_objective_is_the_sum_of_its_documented_terms(perceptual: str, reconstruction: str, weights_dir: Path) -> None:
    """(reconstruction + beta KL) / D + w_p perceptual + w_c cross-entropy + w_centre (pull + push), in float64 from scratch."""
    module = make(
        reconstruction=reconstruction,
        perceptual=perceptual,
        weights_dir=str(weights_dir),
        class_weight=0.3,
        center_weight=0.2,
        center_margin=4.0,
    )
    given = turn(module)
    assert module.adversary is not None
    real, fake = (module.adversary.evaluate(pictures, given.u).features for pictures in (given.x, given.x_hat))
    terms = module.objective(
        given.x, given.label, given.posterior, given.x_hat, (real, fake) if perceptual == "discriminator" else None
    )
    x, x_hat = given.x.double(), given.x_hat.double()
    mean, logvar = (moment.double() for moment in given.posterior)
    error = (x_hat - x).abs() if reconstruction == "l1" else (x_hat - x).square()
    kl = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    expected = (error.sum((1, 2, 3)) + 0.5 * kl) / (3 * SIZE**2)
    if perceptual == "discriminator":
        layers = zip(fake, real, strict=True)
        expected = expected + 0.7 * sum(F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in layers) / 2
    if perceptual == "vgg16":
        vgg = VGG16Features(torch.load(weights_dir / VGG16_FILE, weights_only=True), ["relu1_2", "relu2_2"])
        layers = zip(vgg((given.x_hat + 1) / 2), vgg((given.x + 1) / 2), strict=True)
        expected = expected + 0.7 * sum(2 - 2 * F.cosine_similarity(a, b).mean((1, 2)) for a, b in layers) / 2
    if perceptual == "efficientnet":
        net = load_efficientnet("lite0", "the test")
        layers = zip(net((given.x_hat + 1) / 2), net((given.x + 1) / 2), strict=True)
        expected = expected + 0.7 * sum(2 - 2 * F.cosine_similarity(a, b).mean((1, 2)) for a, b in layers) / 2
    pooled = mean.flatten(2).mean(2)
    head, centers = module.class_head.double(), module.centers.double()
    expected = expected + 0.3 * F.cross_entropy(head(pooled), given.label, reduction="none")
    pull = 0.5 * (pooled - centers[given.label]).square().sum(1)
    push = (4.0 - torch.pdist(centers)).relu().square().mean()
    expected = expected + 0.2 * (pull + push)
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-4, atol=1e-5)
    assert {name for name in terms if name.startswith("loss_")} == {
        *("loss_reconstruction", "loss_kl", "loss_class", "loss_center", "loss_center_push"),
        *(("loss_perceptual",) if perceptual != "none" else ()),
    }
    assert all(terms[name].shape == (3,) for name in terms if name != "loss_center_push")


def test_features_that_a_projected_discriminator_has_seen_are_compared_by_their_directions() -> None:
    """Of augmented pictures, in EfficientNet-Lite0's features, written out by cosines."""
    module = make(perceptual="efficientnet", discriminator=PROJECTED)
    given = turn(module)
    assert module.adversary is not None
    real, fake = (module.adversary.discriminator_input(pictures, given.u) for pictures in (given.x, given.x_hat))
    terms = module.objective(given.x, given.label, given.posterior, given.x_hat, (real, fake))
    net = load_efficientnet("lite0", "the test")
    layers = zip(*(net((diff_augment(x, given.u) + 1) / 2) for x in (given.x_hat, given.x)), strict=True)
    expected = sum(2 - 2 * F.cosine_similarity(a, b).mean((1, 2)) for a, b in layers) / 2
    torch.testing.assert_close(terms["loss_perceptual"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_logged_as_loss_has_the_adversarial_term_in_it() -> None:
    module = make(ADVERSARIAL_STEP)
    assert module.adversary is not None
    module.adversary.adaptive_weight.fill_(2.0)
    terms = module.scores(batch())
    plain = terms["loss_reconstruction"] + 0.5 * terms["loss_kl"] / (3 * SIZE**2)
    torch.testing.assert_close(terms["loss"], plain + 0.5 * 0.75 * 2.0 * terms["loss_adversarial"])
    module.optimizer_steps = 9
    torch.testing.assert_close(module.scores(batch())["loss"], plain)


@pytest.mark.parametrize(("start", "ramp_steps"), [(10, 5), (0.1, 0.05)])
def test_the_generator_is_told_nothing_before_the_start_then_more_and_more(start: float, ramp_steps: float) -> None:
    """Steps, or shares of the run's 100."""
    module = make(adversarial_start_steps=start, adversarial_ramp_steps=ramp_steps)
    module.total_steps = 100
    factors = []
    for step in (0, 9, 10, 12, 14, 15, 1000):
        module.optimizer_steps = step
        factors.append(module.adversarial_factor)
    assert factors == pytest.approx([0, 0, 0.1, 0.3, 0.5, 0.5, 0.5])


def test_extending_a_run_does_not_return_to_before_adversarial_training() -> None:
    """Not by a checkpoint either: of 100 steps it began at the tenth, of 1,000 it would begin at the hundredth."""
    module, resumed = (make(adversarial_start_steps=0.1, adversarial_ramp_steps=0.05) for _ in range(2))
    module.total_steps, module.optimizer_steps = 100, 50
    assert module.adversarial_factor == 0.5
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    for extended in (module, resumed):
        extended.total_steps = 1000
        assert extended.adversarial_factor == 0.5
    resumed.total_steps, resumed.optimizer_steps = 1000, 5
    fresh = make(5, adversarial_start_steps=0.1, adversarial_ramp_steps=0.05)
    fresh.total_steps = 100
    assert fresh.adversarial_factor == 0.0
    fresh.total_steps, fresh.optimizer_steps = 1000, 50
    assert fresh.adversarial_factor == 0.0, "what has not begun moves with the end"


def test_the_guard_s_rollbacks_halve_the_adversarial_weight() -> None:
    module = make(1000)
    assert module.adversarial_factor == 0.5
    module.guard.num_rollbacks = 2
    assert module.adversarial_factor == 0.125


@pytest.mark.parametrize("warmup", [10, 0.05])
def test_beta_grows_in_our_own_steps(warmup: float) -> None:
    """Steps, or a share of the run's 200."""
    module = make(beta=4.0, beta_warmup_steps=warmup)
    module.total_steps, seen = 200, []
    for step in (0, 5, 10, 99):
        module.optimizer_steps = step
        seen.append(module.current_beta)
    assert seen == [0.0, 2.0, 4.0, 4.0]


def test_unlabelled_pictures_add_nothing_to_the_class_losses() -> None:
    """Neither value nor gradient, for those in a batch with labelled ones too; centres still push each other."""
    module, plain = make(class_weight=1.0, center_weight=1.0, center_margin=0.0), make()
    given, unlabelled = turn(module), torch.tensor([-1, -1, -1])
    loss = module.objective(given.x, unlabelled, given.posterior, given.x_hat, None)["loss"]
    expected = plain.objective(given.x, unlabelled, given.posterior, given.x_hat, None)["loss"]
    assert torch.equal(loss, expected)
    wanted = [given.posterior.mean, module.centers, *module.class_head.parameters()]
    grads = torch.autograd.grad(loss.sum(), wanted, retain_graph=True)
    (without,) = torch.autograd.grad(expected.sum(), given.posterior.mean, retain_graph=True)
    assert torch.equal(grads[0], without)
    assert all(gradient.abs().max() == 0 for gradient in grads[1:])
    some = torch.tensor([-1, 2, -1])
    terms = module.objective(given.x, some, given.posterior, given.x_hat, None)
    assert terms["loss_class"].count_nonzero() == terms["loss_center"].count_nonzero() == 1
    assert torch.equal(terms["loss"][[0, 2]], expected[[0, 2]])


def test_class_losses_teach_head_and_centres() -> None:
    module = make(class_weight=1.0, center_weight=1.0)
    training_step(module, batch())
    assert module.centers.grad is not None
    assert module.centers.grad.abs().max() > 0
    assert all_set(module.class_head)


# -- what is refused


@pytest.mark.parametrize("weight", ["class_weight", "center_weight"])
def test_class_losses_without_classes_are_refused(weight: str) -> None:
    with pytest.raises(UserError, match=r"model\.class_weight and model\.center_weight need labels"):
        make(num_classes=0, **{weight: 0.1})
    make(num_classes=0)


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.latent: .*8 does not divide pictures of 20 px"):
        make(image_size=20, latent={"kind": "spatial", "factor": 8, "channels": 2, "dim": 6})


def test_patches_that_do_not_fit_are_refused_and_others_named_by_what_the_latent_is() -> None:
    latent = {"kind": "spatial", "factor": 4, "channels": 8, "dim": 6, "patch_size": 2}
    with pytest.raises(UserError, match=r"model\.latent: patch_size=2 needs"):
        make(latent=latent | {"channels": 2})
    assert make(latent=latent).summary().startswith("16 px to latents of 8 x 4 x 4, down 4 times")
    assert make(latent=latent | {"kind": "flat"}).latent_shape == (6, 1, 1)


@pytest.mark.parametrize("stem_px", [3, 8])
def test_a_stem_that_does_not_fit_the_factor_is_refused(stem_px: int) -> None:
    with pytest.raises(UserError, match=rf"model\.blocks\.stem_px={stem_px} must be a power of two .* factor, 4"):
        make(blocks=DEFAULTS["blocks"] | {"stem_px": stem_px})


# -- networks from outside


def test_vgg_s_weights_are_neither_saved_nor_trained_nor_averaged(weights_dir: Path) -> None:
    module = make(perceptual="vgg16", weights_dir=str(weights_dir), ema_decay=0.9)
    before = set(module.state_dict())
    assert module.scores(batch())["loss_perceptual"].min() > 0
    assert set(module.state_dict()) == before
    assert not any("features.0" in name or "perceptual" in name for name in before)
    assert module._perceptual_net is not None
    net = module._perceptual_net.on_device(torch.device("cpu"))
    optimised = {
        id(p) for optimizer in module.configure_optimizers() for group in optimizer.param_groups for p in group["params"]
    }
    assert optimised.isdisjoint(id(p) for p in net.parameters())
    training_step(module, batch())
    assert module._perceptual_net.on_device(torch.device("cpu")) is net, "loaded once"


def test_efficientnet_s_weights_are_neither_saved_nor_trained() -> None:
    module = make(ADVERSARIAL_STEP, perceptual="efficientnet", discriminator=PROJECTED)
    before = set(module.state_dict())
    training_step(module, batch())
    assert set(module.state_dict()) == before
    assert not any("stages" in name or "stem" in name for name in before)
    assert "adversary.discriminator.across_channels_0" in before, "the random convolutions are kept"
    assert not any("across" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("perceptual", ["vgg16", "efficientnet"])
def test_a_validation_that_comes_first_leaves_a_perceptual_net_that_training_can_use(
    weights_dir: Path, perceptual: str
) -> None:
    """Lightning validates in inference mode, whose tensors cannot be part of a graph."""
    module = make(perceptual=perceptual, weights_dir=str(weights_dir), discriminator=PROJECTED)
    with torch.inference_mode():
        module.scores(batch())
    training_step(module, batch())
    assert all_set(module.net)


def test_without_a_network_from_outside_nothing_is_loaded() -> None:
    for perceptual in ("none", "discriminator"):
        module = make(perceptual=perceptual)
        module.scores(batch())
        training_step(module, batch())
        assert module._perceptual_net is None


def test_a_discriminator_exists_for_adversarial_training_or_its_features() -> None:
    assert make(adversarial_weight=0.0).adversary is None
    assert make(adversarial_weight=0.0, perceptual="discriminator").adversary is not None
    alone = make(ADVERSARIAL_STEP, adversarial_weight=0.0, perceptual="discriminator")
    training_step(alone, batch())
    assert alone.adversary is not None
    assert all_set(alone.net)
    assert all_set(alone.adversary), "its features need training even without an adversarial loss"
    without = make(ADVERSARIAL_STEP, adversarial_weight=0.0)
    training_step(without, batch())
    assert all_set(without.net)


# -- encoding, decoding, sampling


@pytest.mark.parametrize("kind", ["spatial", "flat"])
def test_pictures_go_in_and_come_out_between_0_and_1(kind: str) -> None:
    module = make(latent={"kind": kind, "factor": 4, "channels": 2, "dim": 6}).eval()
    posterior = module.encode(pictures(3))
    assert posterior.mean.shape == posterior.logvar.shape == (3, *module.latent_shape)
    assert module.latent_shape == ((2, 4, 4) if kind == "spatial" else (6, 1, 1))
    x_hat = module.decode(50 * posterior.mean)
    assert x_hat.shape == (3, 3, SIZE, SIZE)
    assert 0 <= x_hat.min() <= x_hat.max() <= 1


def test_the_network_sees_pictures_from_minus_1_to_1() -> None:
    module = make()
    torch.testing.assert_close(module.encode(pictures(2)).mean, module.net.encoder(pictures(2) * 2 - 1).mean)
    z = torch.zeros(1, 2, 4, 4)
    torch.testing.assert_close(module.decode(z), ((module.net.decoder(z) + 1) / 2).clamp(0, 1))


def test_weights_are_a_function_of_the_seed() -> None:
    changes = {"class_weight": 1.0, "center_weight": 1.0}
    torch.manual_seed(5)
    first = make(**changes)
    torch.manual_seed(6)
    for a, b in zip(first.parameters(), make(**changes).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_average_is_of_encoder_and_decoder_and_is_what_encodes_decodes_and_is_validated() -> None:
    module = make(ema_decay=0.9, class_weight=1.0, center_weight=1.0)
    assert module.ema is not None
    assert module.adversary is not None
    assert set(module.ema.net.state_dict()) == set(module.net.state_dict())
    assert {name.split(".")[0] for name in module.ema.net.state_dict()} == {"encoder", "decoder"}
    z = torch.ones(2, *module.latent_shape)
    before = module.decode(z), module.encode(pictures(2)).mean, module.scores(batch())["psnr"]
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.05)
    after = module.decode(z), module.encode(pictures(2)).mean, module.scores(batch())["psnr"]
    torch.testing.assert_close(after, before)
    module.ema.update(module.net, step=10**6)
    assert not torch.allclose(module.decode(z), before[0])


def test_each_optimiser_has_its_own_network_and_no_parameter_is_left_out() -> None:
    module = make(ema_decay=0.9, class_weight=1.0, center_weight=1.0)
    assert module.adversary is not None
    generator, discriminator = (
        {id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in module.configure_optimizers()
    )
    assert discriminator == {id(p) for p in module.adversary.parameters()}
    own = [*module.net.parameters(), *module.class_head.parameters(), module.centers]
    assert generator == {id(p) for p in own}
    assert len(make(adversarial_weight=0.0).configure_optimizers()) == 1


def test_it_overfits_one_batch_without_adversarial_training() -> None:
    """Eight gradients, 150 steps without a KL: at least 26 dB, where the mean picture of the batch gives less than 16 dB."""
    module = make(
        beta=0.0,
        adversarial_weight=0.0,
        reconstruction="mse",
        optimizer=partial(torch.optim.Adam, lr=4e-3),
        latent={"kind": "spatial", "factor": 4, "channels": 4, "dim": 6},
        blocks=DEFAULTS["blocks"] | {"channels": [8, 16], "norm": "group"},
    )
    x = pictures(8)
    (optimizer,) = module.configure_optimizers()
    for _ in range(150):
        posterior = module.net.encoder(2 * x - 1)
        x_hat = module.net.decoder(posterior.mean)
        loss = module.objective(2 * x - 1, torch.full((8,), -1), posterior, x_hat, None)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mse = (module.decode(module.encode(x).mean) - x).square().mean().item()
    baseline = (x.mean(0) - x).square().mean().item()
    assert -10 * math.log10(mse) > 26 > -10 * math.log10(baseline) + 10


# -- validation


def test_a_picture_s_scores_depend_on_it_and_its_number_alone() -> None:
    module, data = make(ADVERSARIAL_STEP, perceptual="discriminator"), batch(3)
    together = module.scores(data)
    alone = module.scores(Batch(data.image[2:], data.label[2:], data.index[2:]))
    for name, value in together.items():
        if value.ndim:
            torch.testing.assert_close(alone[name], value[2:], rtol=1e-4, atol=1e-4)
    other_noise = module.scores(Batch(data.image[2:], data.label[2:], data.index[2:] + 7))
    assert other_noise["loss_reconstruction"] != alone["loss_reconstruction"]
    assert other_noise["psnr"] == alone["psnr"], "decoded from the mean"


@pytest.mark.parametrize("perceptual", ["none", "discriminator", "vgg16", "efficientnet"])
def test_what_chooses_the_best_epoch_does_not_move_with_the_discriminator(perceptual: str, weights_dir: Path) -> None:
    """L1 in [-1, 1] plus the weighted distance in VGG-16 or EfficientNet-Lite0, or else 1 - SSIM."""
    module = make(ADVERSARIAL_STEP, perceptual=perceptual, weights_dir=str(weights_dir))
    assert module.adversary is not None
    scores = module.scores(batch())
    distance = 0.7 * scores["loss_perceptual"] if perceptual in ("vgg16", "efficientnet") else 1 - scores["ssim"]
    torch.testing.assert_close(scores["l1_perceptual"], scores["loss_reconstruction"] + distance)
    with torch.no_grad():
        for parameter in module.adversary.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(module.scores(batch())["l1_perceptual"], scores["l1_perceptual"])


@pytest.mark.parametrize(
    ("step", "failed", "total_steps", "expected"),
    [
        (13, False, 100, False),  # the ramp of 10 + 4 steps is not at its end
        (14, False, 100, True),
        (14, True, 100, False),
        (11, False, 12, False),
        (12, False, 12, True),  # a run that ends before the ramp: its end is what there is
        (100, True, 100, False),
    ],
)
def test_only_weights_trained_at_full_adversarial_weight_that_the_guard_accepts_may_be_best(
    step: int, failed: bool, total_steps: int, expected: bool
) -> None:
    module = make(step)
    module.total_steps, module.guard.failed = total_steps, failed
    assert module.eligible_as_best == expected
    without = make(step, adversarial_weight=0.0)
    without.total_steps = total_steps
    assert without.eligible_as_best


# -- with a Trainer


def fit(run: Path, *overrides: str, watch: Callable[[VAEGANModule], None] = lambda _: None) -> VAEGANModule:
    config = resolve(
        checked(
            [
                "model=vae_gan",
                "data=procedural",
                "data.num_images=40",
                "data.image_size=28",
                "data.batch_size=8",
                "debug=tiny",
                "trainer.accelerator=cpu",
                "trainer.limit_train_batches=2",
                "model.blocks.channels=[4,8]",
                "model.discriminator.channels=4",
                "model.perceptual=none",
                "model.adversarial_start_steps=2",
                "model.adversarial_ramp_steps=1",
                *overrides,
            ]
        )[0]
    )
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, num_classes=len(data.class_names))
    assert isinstance(module, VAEGANModule)
    watch(module)
    build_trainer(config, RunFolder(run), None).fit(module, datamodule=data)
    return module


def test_a_run_that_deteriorates_is_rolled_back_to_its_last_good_epoch(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, averages, the discriminator and both optimisers are those of epoch 2 after the failed epoch 3, bit by bit."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    seen: list[dict[str, Any]] = []

    def watch(module: VAEGANModule) -> None:
        check, end = module.guard.check, module.on_train_epoch_end

        def failing(psnr: float, adversarial_started: bool) -> None:
            check(math.nan if module.trainer.current_epoch == 2 else psnr, adversarial_started)

        def recorded() -> None:
            end()
            seen.append(
                {
                    "module": {name: value.clone() for name, value in module.state_dict().items()},
                    "optimizers": [
                        {
                            str(number): {k: v.clone() for k, v in state.items()}
                            for number, state in o.state_dict()["state"].items()
                        }
                        for o in module.list_optimizers()
                    ],
                    "factor": module.guard.factor,
                }
            )

        module.guard.check = failing  # type: ignore[method-assign]
        module.on_train_epoch_end = recorded  # type: ignore[method-assign]

    module = fit(
        tmp_path, "trainer.max_epochs=4", "model.guard=rollback", "model.guard_margin=50", "model.ema_decay=0.9", watch=watch
    )
    assert len(seen) == 4
    assert [epoch["factor"] for epoch in seen] == [1, 1, 0.5, 0.5]
    for part in ("module", "optimizers"):
        torch.testing.assert_close(seen[2][part], seen[1][part], rtol=0, atol=0)
        for other in (0, 3):
            with pytest.raises(AssertionError):
                torch.testing.assert_close(seen[other][part], seen[1][part], rtol=0, atol=0)
    assert module.optimizer_steps == 8, "steps are counted on: they stand for time"


def test_adversarial_training_that_never_begins_is_refused(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    with pytest.raises(UserError, match=r"model\.adversarial_start_steps=1000 is never reached: this run has 4"):
        fit(tmp_path, "model.adversarial_start_steps=1000", "trainer.limit_train_batches=1.0", "trainer.max_epochs=1")


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_gradients_of_both_networks_are_clipped(
    algorithm: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    sizes, step = [], torch.optim.Adam.step

    def clipped_step(self: torch.optim.Adam, closure: Any = None) -> Any:
        result = step(self, closure)
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        largest = max(g.abs().max().item() for g in gradients)
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        sizes.append(norm if algorithm == "norm" else largest)
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", clipped_step)
    fit(tmp_path, "trainer.gradient_clip_val=1e-4", f"trainer.gradient_clip_algorithm={algorithm}", "trainer.max_epochs=1")
    assert len(sizes) == 2 * 2
    assert all(0.9e-4 < size < 1.001e-4 for size in sizes)


def test_a_run_whose_psnr_is_always_nan_warns_and_continues(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    check = Guard.check
    monkeypatch.setattr(Guard, "check", lambda self, psnr, adversarial_started: check(self, math.nan, adversarial_started))
    fit(tmp_path, "model.adversarial_start_steps=0", "trainer.max_epochs=2")
    assert "dB below the best" in caplog.text
