import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowergen.errors import UserError
from flowergen.losses.diff_augment import NUM_DRAWS, diff_augment
from flowergen.modules.adversary import Adversary
from flowergen.modules.pretrained_weights import LazyFrozenNetwork, load_efficientnet
from flowergen.nn.discriminator import receptive_field
from flowergen.picture_shape import PictureShape
from flowergen.randomness import initialisation

DEFAULTS: dict[str, Any] = {
    "shape": PictureShape.of(32),
    "channels": 4,
    "num_halvings": "auto",
    "norm": "group",
    "loss": "hinge",
    "adaptive_weight_max": 10.0,
    "augment": True,
    "features": LazyFrozenNetwork(partial(load_efficientnet, "lite0", "the test")),
}


def make(**changes: Any) -> Adversary:
    with initialisation(0):
        return Adversary(**{**DEFAULTS, **changes})


def pictures(num: int, seed: int, size: int = 32) -> torch.Tensor:
    """Smooth colour gradients in [-1, 1]."""
    corners = 2 * torch.rand(num, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) - 1
    return F.interpolate(corners, size=size, mode="bilinear", align_corners=True)


def noise(num: int, seed: int, size: int = 32) -> torch.Tensor:
    return 2 * torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize("kind", ["patch", "projected"])
@pytest.mark.parametrize("norm", ["group", "spectral"])
@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_a_discriminator_alone_learns_to_tell_pictures_from_noise(loss: Any, norm: Any, kind: Any) -> None:
    """After 40 steps on augmented ones: more than nine of ten patches of others, unseen and not augmented."""
    adversary = make(loss=loss, norm=norm, channels=8, kind=kind)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=4e-3, betas=(0.5, 0.9))

    def accuracy() -> float:
        with torch.no_grad():
            real, fake = adversary.evaluate(pictures(16, 1000)), adversary.evaluate(noise(16, 1001))
        return adversary.metrics(real.logits, fake.logits)["discriminator_accuracy"].mean().item()

    assert accuracy() < 0.8
    for step in range(40):
        adversary.discriminator.update_spectral_norms()
        u = torch.rand(8, NUM_DRAWS, generator=torch.Generator().manual_seed(step))
        real, fake = (adversary.evaluate(x, u).logits for x in (pictures(8, 2 * step), noise(8, 2 * step + 1)))
        optimizer.zero_grad()
        adversary.discriminator_loss(real, fake).mean().backward()
        optimizer.step()
    assert accuracy() > 0.9


@pytest.mark.parametrize("kind", ["patch", "projected"])
def test_the_discriminator_sees_augmented_pictures_if_augmentation_is_on(kind: Any) -> None:
    x, u = pictures(3, 0), torch.rand(3, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    adversary, plain = make(kind=kind), make(augment=False, kind=kind)
    torch.testing.assert_close(adversary.evaluate(x, u).logits, plain.evaluate(diff_augment(x, u)).logits)
    assert not torch.allclose(adversary.evaluate(x, u).logits, plain.evaluate(x, u).logits)
    assert torch.equal(plain.evaluate(x, u).logits, plain.evaluate(x).logits)
    assert torch.equal(adversary.evaluate(x).logits, plain.evaluate(x).logits), "validation sees pictures as they are"


@pytest.mark.parametrize(("size", "patch"), [(28, 16), (64, 16), (128, 34), (256, 70)])
def test_patches_go_by_the_image_size_unless_they_are_given(size: int, patch: int) -> None:
    assert make(shape=PictureShape.of(size)).description == f"discriminator on patches of {patch} px"
    given = make(shape=PictureShape.of(size), num_halvings=2)
    assert given.description == f"discriminator on patches of {receptive_field(2)} px"
    assert len(given.discriminator.hidden) == 3


def test_adversarial_metrics_follow_their_formulas() -> None:
    """Accuracy: the share of patches on the right side of 0; gap: the difference of the means."""
    adversary = make()
    real = torch.tensor([[2.0, -1.0, 0.5, 3.0], [-1.0, -2.0, -3.0, 1.0]]).view(2, 1, 2, 2)
    fake = torch.tensor([[-2.0, -1.0, 0.5, -3.0], [1.0, 2.0, 3.0, 1.0]]).view(2, 1, 2, 2)
    found = adversary.metrics(real, fake)
    assert found["discriminator_accuracy"].tolist() == [6 / 8, 1 / 8]
    assert found["logit_gap"].tolist() == [1.125 + 1.375, -1.25 - 1.75]
    assert found["loss_adversarial"].tolist() == [1.375, -1.75]
    assert found["loss_discriminator"].tolist() == pytest.approx([(2.5 / 4 + 1.5 / 4) / 2, (9 / 4 + 11 / 4) / 2])
    assert found["adaptive_weight"].item() == 1
    log_two = make(loss="non_saturating").metrics(torch.zeros_like(real), torch.zeros_like(fake))
    torch.testing.assert_close(log_two["loss_adversarial"], torch.full((2,), math.log(2)))
    torch.testing.assert_close(log_two["loss_discriminator"], torch.full((2,), math.log(2)))


def test_what_is_logged_of_the_adaptive_weight_does_not_change_with_it() -> None:
    adversary = make()
    logged = adversary.metrics(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))["adaptive_weight"]
    adversary.adaptive_weight.fill_(5)
    assert logged.item() == 1


@pytest.mark.parametrize("kind", ["patch", "projected"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_adaptive_weight_is_measured_from_whole_optimiser_steps(parts: int, kind: Any) -> None:
    """From the gradients by the output: the last layer's, by autograd on the whole batch; for the next step, then anew."""
    adversary = make(adaptive_weight_max=1e4, kind=kind)
    torch.manual_seed(0)
    layer, h, target = nn.Conv2d(5, 3, 3, padding=1), torch.randn(4, 5, 32, 32), torch.randn(4, 3, 32, 32)

    def losses(rows: slice, x_hat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x_hat - target[rows]).abs().sum() / 100, adversary.generator_loss(adversary.evaluate(x_hat).logits).sum()

    whole = losses(slice(0, 4), layer(h))
    norms = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in whole]
    for part in range(parts):
        rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
        x_hat = layer(h[rows])
        grads = [torch.autograd.grad(loss, x_hat, retain_graph=True)[0] for loss in losses(rows, x_hat)]
        adversary.add_last_layer_gradients(h[rows], layer, *grads)
        assert adversary.adaptive_weight.item() == 1, "it changes after the step"
    adversary.update_adaptive_weight(world_size=1)
    assert adversary.adaptive_weight.item() == pytest.approx((norms[0] / norms[1]).item(), rel=1e-4)
    assert adversary.adaptive_weight.item() != pytest.approx(1, rel=0.1)
    before = adversary.adaptive_weight.item()
    adversary.update_adaptive_weight(world_size=1)  # a step without the adversarial loss
    assert adversary.adaptive_weight.item() == before
    adversary.add_last_layer_gradients(h[rows], layer, 3 * grads[1], grads[1])
    adversary.update_adaptive_weight(world_size=1)
    assert adversary.adaptive_weight.item() == pytest.approx(3, rel=1e-4), "nothing is left of earlier steps"


def test_the_adaptive_weight_is_kept_in_checkpoints_and_out_of_the_optimiser() -> None:
    adversary = make()
    adversary.adaptive_weight.fill_(3)
    assert adversary.state_dict()["adaptive_weight"].item() == 3
    assert "adaptive_weight" not in dict(adversary.named_parameters())


def test_halvings_that_leave_no_map_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_halvings=5 leaves no map of logits for pictures of 64 px: use 1, or auto"):
        make(shape=PictureShape.of(64), num_halvings=5)
