"""The discriminator of a VAE-GAN, and the weight of its loss."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.nn.grad import conv2d_weight

from flowergen.errors import UserError
from flowergen.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
)
from flowergen.losses.diff_augment import diff_augment
from flowergen.modules.pretrained_weights import LazyFrozenNetwork
from flowergen.nn.discriminator import DiscriminatorOutput, PatchDiscriminator, logits_side, num_halvings_for, receptive_field
from flowergen.nn.efficientnet import WIDTHS, num_maps_for
from flowergen.nn.projected_discriminator import ProjectedDiscriminator
from flowergen.picture_shape import PictureShape

DISCRIMINATOR_LOSSES = {"hinge": hinge_discriminator, "non_saturating": non_saturating_discriminator}
GENERATOR_LOSSES = {"hinge": hinge_generator, "non_saturating": non_saturating_generator}


class Adversary(nn.Module):
    """The discriminator, its losses, and the weight of the adversarial loss.

    Args:
        shape: (C, H, W) of the pictures.
        channels, num_halvings, norm: arguments of the ``PatchDiscriminator`` or the ``ProjectedDiscriminator``;
            ``num_halvings`` is for the former only, and ``auto`` depends on the image size.
        loss: ``hinge`` or ``non_saturating``.
        adaptive_weight_max: cap of the adaptive weight.
        augment: apply ``diff_augment`` to its pictures.
        features: the frozen EfficientNet-Lite of a projected discriminator.
        kind: ``patch`` or ``projected``.

    Raises:
        UserError: too many halvings for the picture.
    """

    def __init__(
        self,
        shape: PictureShape,
        channels: int,
        num_halvings: int | Literal["auto"],
        norm: Literal["group", "spectral"],
        loss: Literal["hinge", "non_saturating"],
        adaptive_weight_max: float,
        augment: bool,
        features: LazyFrozenNetwork,
        kind: Literal["patch", "projected"] = "patch",
    ):
        super().__init__()
        self.discriminator: PatchDiscriminator | ProjectedDiscriminator
        self._features = features if kind == "projected" else None
        if kind == "projected":
            self.discriminator = ProjectedDiscriminator(shape, WIDTHS[: num_maps_for(shape)], channels, norm)
            self.description = f"discriminator of {len(self.discriminator.heads)} heads on features of EfficientNet-Lite0"
        else:
            halvings = num_halvings_for(shape.short_side) if num_halvings == "auto" else num_halvings
            if logits_side(shape.short_side, halvings) < 2:
                raise UserError(
                    f"model.discriminator.num_halvings={halvings} leaves no map of logits for pictures of {shape}: "
                    f"use {num_halvings_for(shape.short_side)}, or auto"
                )
            self.discriminator = PatchDiscriminator(channels, halvings, norm, shape.channels)
            self.description = f"discriminator on patches of {receptive_field(halvings)} px"
        self.discriminator_loss, self.generator_loss = DISCRIMINATOR_LOSSES[loss], GENERATOR_LOSSES[loss]
        self.adaptive_weight_max, self.augment = adaptive_weight_max, augment
        self.adaptive_weight = nn.Buffer(torch.ones(()))
        self._last_layer_gradients: Tensor | None = None

    def discriminator_input(self, x: Tensor, u: Tensor | None = None) -> list[Tensor]:
        """The discriminator's input: the augmented pictures, or frozen features of them.

        Args:
            x: (N, C, H, W) in [-1, 1].
            u: (N, 7) for ``diff_augment``; None for no augmentation.

        Returns:
            (N, C, H, W) alone, or (N, C, h, w) for each of the frozen maps.
        """
        x = diff_augment(x, u) if self.augment and u is not None else x
        return [x] if self._features is None else self._features.on_device(x.device)((x + 1) / 2)

    def evaluate(self, x: Tensor, u: Tensor | None = None) -> DiscriminatorOutput:
        """Evaluate the discriminator, with the arguments of ``discriminator_input``."""
        return self.evaluate_input(self.discriminator_input(x, u))

    def evaluate_input(self, inputs: list[Tensor]) -> DiscriminatorOutput:
        """Evaluate the discriminator for the value that ``discriminator_input`` returned."""
        return self.discriminator(inputs[0] if self._features is None else inputs)

    def generator_gradient(self, fake: DiscriminatorOutput, cut: list[Tensor], inputs: list[Tensor], x_hat: Tensor) -> Tensor:
        """The gradient of the generator's adversarial loss with respect to its pictures; parameters receive none.

        It is computed from the sum over pictures and logits and divided afterwards, because a mean may underflow in float16.

        Args:
            fake: the discriminator's output for ``cut``.
            cut: ``inputs``, detached leaves with ``requires_grad``, whose ``grad`` is set.
            inputs: the value of ``discriminator_input`` for ``x_hat``, (N, C, h, w) each.
            x_hat: (N, C, H, W) in [-1, 1].

        Returns:
            (N, C, H, W), the gradient of the loss summed over the pictures.
        """
        num = fake.logits[0].numel()
        # not autograd.grad: with the hooks of torch's FLOP counter it refuses leaves such as these
        torch.autograd.backward(num * self.generator_loss(fake.logits).sum(), inputs=cut, retain_graph=True)
        return torch.autograd.grad(inputs, x_hat, [features.grad for features in cut], retain_graph=True)[0] / num

    def metrics(self, logits_real: Tensor, logits_fake: Tensor) -> dict[str, Tensor]:
        """Losses and diagnostics of both networks.

        Args:
            logits_real, logits_fake: (N, K, h, w), K = 1 for patches.

        Returns:
            By name, each (N,): both networks' losses, the discriminator's accuracy on patches and the gap between its logits;
            and the scalar ``adaptive_weight``.
        """
        correct = torch.cat([logits_real > 0, logits_fake < 0], dim=1)
        return {
            "loss_adversarial": self.generator_loss(logits_fake),
            "loss_discriminator": self.discriminator_loss(logits_real, logits_fake),
            "discriminator_accuracy": correct.float().flatten(1).mean(1),
            "logit_gap": (logits_real - logits_fake).flatten(1).mean(1),
            "adaptive_weight": self.adaptive_weight.clone(),
        }

    # VQGAN's code computes the adaptive weight from the gradients of the same batch. Here each optimiser step uses the weight
    # from the gradients of the previous one, summed over its batches and devices: this needs no second backward pass, and the
    # weight is the same for all batches and devices.

    @torch.no_grad()
    def add_last_layer_gradients(self, h: Tensor, layer: nn.Conv2d, grad_nll: Tensor, grad_adversarial: Tensor) -> None:
        """Add a batch of an optimiser step: gradients with respect to the generator's last layer, from those to its output.

        Args:
            h: (N, c, H / r, W / r) input of the layer; r is the factor of the pixel shuffle after it, 1 for none.
            layer: the generator's last layer.
            grad_nll: (N, C, H, W) of the non-adversarial losses.
            grad_adversarial: (N, C, H, W) of the adversarial loss alone, with weight 1.
        """
        shuffled = grad_nll.shape[-1] // h.shape[-1]
        both = torch.stack(
            [
                conv2d_weight(h.float(), layer.weight.shape, F.pixel_unshuffle(grad.float(), shuffled), padding=layer.padding)
                for grad in (grad_nll, grad_adversarial)
            ]
        )  # (2, C r^2, c, 3, 3)
        self._last_layer_gradients = both if self._last_layer_gradients is None else self._last_layer_gradients + both

    def update_adaptive_weight(self, world_size: int, keep: bool = False) -> None:
        """Compute the weight for the next optimiser step.

        Args:
            world_size: number of devices.
            keep: keep the current weight, because the step was skipped.
        """
        if self._last_layer_gradients is None:
            return
        if world_size > 1:
            all_reduce(self._last_layer_gradients)
        grad_nll, grad_adversarial = self._last_layer_gradients
        weight = adaptive_weight(grad_nll, grad_adversarial, self.adaptive_weight, self.adaptive_weight_max)
        self.adaptive_weight.copy_(self.adaptive_weight if keep else weight)
        self._last_layer_gradients = None
