"""The VAE-GAN as a LightningModule: an autoencoder with perceptual and adversarial losses."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.losses.adversarial import ramp
from flowergen.losses.center import center_pull, center_push, class_cross_entropy
from flowergen.losses.diff_augment import NUM_DRAWS
from flowergen.losses.kl import kl_standard_normal
from flowergen.losses.perceptual import feature_distance, normalised_feature_distance
from flowergen.losses.reconstruction import absolute_error, squared_error
from flowergen.modules.adversary import Adversary
from flowergen.modules.ema import EMA
from flowergen.modules.guard import MAX_ROLLBACKS, Guard
from flowergen.modules.lr_schedule import LrSchedule
from flowergen.modules.pretrained import build_pretrained
from flowergen.modules.pretrained_weights import LazyFrozenNetwork, load_efficientnet, load_lpips, load_vgg16
from flowergen.modules.reconstruction_scores import ReconstructionScores
from flowergen.modules.two_optimizers import MakeOptimizer, TwoOptimizers
from flowergen.nn.diffusers_autoencoder import DiffusersAutoencoder
from flowergen.nn.discriminator import frozen
from flowergen.nn.perceptual import VGG16Features
from flowergen.nn.posterior import Posterior
from flowergen.nn.projected_discriminator import ProjectedDiscriminator
from flowergen.nn.residual_autoencoder import Blocks, LatentShape, ResidualAutoencoder
from flowergen.picture_shape import ImageSize, PictureShape
from flowergen.randomness import normal, normal_per_sample, uniform

log = logging.getLogger(__name__)

Network = ResidualAutoencoder | DiffusersAutoencoder
SharedFeatures = tuple[list[Tensor], list[Tensor]]  # features of x and of x_hat, for the losses of both networks


class VAEGANModule(TwoOptimizers):
    """A VAE with a perceptual and an adversarial loss, the first stage of latent diffusion
    (Rombach et al. 2022, arXiv:2112.10752).

    Larsen et al. 2016 (arXiv:1512.09300) introduced the combination; the patch discriminator and the adaptive weight are from
    VQGAN (Esser et al. 2021, arXiv:2012.09841). Pictures are in [0, 1] at the interface and in [-1, 1] in the networks.

    Args:
        image_size, image_channels: see ``ImageModel``.
        seed: seed of all noise.
        num_classes: number of classes of the data set, 0 without labels.
        latent, blocks: fields of ``LatentShape`` and ``Blocks``; unused with ``pretrained``.
        reconstruction: ``l1`` or ``mse``.
        beta, beta_warmup_steps: weight of the KL relative to the reconstruction error, both summed over the picture, and the
            number (or fraction) of optimiser steps in which it grows linearly from 0.
        perceptual: the features that reconstructions are compared in: ``efficientnet`` (Lite0), ``vgg16``, ``lpips``,
            ``discriminator`` (its own) or ``none``. A projected discriminator uses Lite0's features as well; in training,
            ``efficientnet`` then compares the same features, of augmented pictures (Kettunen et al. 2019, arXiv:1906.03973).
        perceptual_weight: weight of that distance.
        perceptual_layers: layers of VGG-16, for ``vgg16`` only.
        weights_dir: folder of VGG-16's weights.
        adversarial: ``hinge`` or ``non_saturating``.
        adversarial_weight: weight of the generator's adversarial loss, multiplied with the adaptive weight; 0 for no
            discriminator, unless its features are needed.
        adaptive_weight_max: cap of the adaptive weight.
        adversarial_start_steps, adversarial_ramp_steps: number (or fraction) of optimiser steps until the adversarial loss
            starts, and from there to its full weight. The discriminator trains from the beginning.
        diff_augment: evaluate augmented pictures in both losses.
        discriminator: ``kind``, ``channels``, ``num_halvings`` and ``norm`` of ``Adversary``.
        class_weight: weight of the cross-entropy of a linear class head on the pooled latent mean.
        center_weight, center_margin: weight of the centre losses on it (``losses.center``); hinge margin between class centres.
        guard, guard_margin: see ``Guard``.
        ema_decay: decay of the moving average of encoder and decoder, used for everything except training; None for none.
        optimizer, discriminator_optimizer, lr_schedule, lr_warmup_steps, accumulate_grad_batches, gradient_clip_val,
            gradient_clip_algorithm: see ``TwoOptimizers``.
        pretrained: ``kind``, ``config`` and ``source`` of ``build_pretrained``, to train an autoencoder of diffusers further;
            None for a ``ResidualAutoencoder``. The weights are random until they are loaded.
        freeze: ``encoder``: only the decoder is trained; ``none``: both.

    Raises:
        UserError: the factor does not divide the image size, there are class losses but no classes, or see
            ``build_pretrained``.
    """

    decoder_activation = "clamp"
    best_metric = "l1_perceptual"
    best_mode = "min"

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        num_classes: int,
        latent: dict[str, Any],
        blocks: dict[str, Any],
        reconstruction: Literal["l1", "mse"],
        beta: float,
        beta_warmup_steps: float,
        perceptual: Literal["efficientnet", "vgg16", "lpips", "discriminator", "none"],
        perceptual_weight: float,
        perceptual_layers: Sequence[str],
        weights_dir: str,
        adversarial: Literal["hinge", "non_saturating"],
        adversarial_weight: float,
        adaptive_weight_max: float,
        adversarial_start_steps: float,
        adversarial_ramp_steps: float,
        diff_augment: bool,
        discriminator: dict[str, Any],
        class_weight: float,
        center_weight: float,
        center_margin: float,
        guard: Literal["warn", "rollback"],
        guard_margin: float,
        optimizer: MakeOptimizer,
        discriminator_optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        lr_warmup_steps: float,
        ema_decay: float | None,
        accumulate_grad_batches: int,
        gradient_clip_val: float | None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        pretrained: dict[str, Any] | None = None,
        freeze: Literal["none", "encoder"] = "none",
        image_channels: int = 3,
    ):
        super().__init__(
            image_size,
            seed,
            lr_schedule,
            lr_warmup_steps,
            optimizer,
            discriminator_optimizer,
            accumulate_grad_batches,
            gradient_clip_val,
            gradient_clip_algorithm,
            image_channels,
        )
        shape = self.picture_shape
        self.reconstruction, self.num_values = reconstruction, shape.num_values
        self.beta, self.beta_warmup_steps = beta, beta_warmup_steps
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.adversarial_start_steps, self.adversarial_ramp_steps = adversarial_start_steps, adversarial_ramp_steps
        self.class_weight, self.center_weight, self.center_margin = class_weight, center_weight, center_margin
        self.guard = Guard(guard, guard_margin)

        if (class_weight or center_weight) and not num_classes:
            raise UserError(
                "model.class_weight and model.center_weight need labels, and the data has none: set both to 0, "
                "or use pictures in a folder for each class"
            )
        self.pretrained, self.trains_encoder = pretrained, freeze == "none"
        self.net: Network
        if pretrained is None:
            self.net, self._latent_shape, self.factor = _residual_network(shape, LatentShape(**latent), Blocks(**blocks))
        else:
            net, self._latent_shape = build_pretrained(shape, **pretrained)
            self.net, self.factor = DiffusersAutoencoder(net, pretrained["kind"]), shape.height // self._latent_shape[1]
        if not self.trains_encoder:
            self.net.encoder.requires_grad_(False).eval()
        self.ema = EMA(self.net, ema_decay) if ema_decay is not None else None
        if class_weight:
            self.class_head = nn.Linear(self.latent_shape[0], num_classes)
        if center_weight:  # spread like the prior
            self.centers = nn.Parameter(torch.randn(num_classes, self.latent_shape[0]))
        efficientnet = LazyFrozenNetwork(partial(load_efficientnet, "lite0", "model.perceptual or model.discriminator.kind"))
        shared = adversarial_weight > 0 and discriminator.get("kind") == "projected"
        self._compares_shared = perceptual == "discriminator" or (perceptual == "efficientnet" and shared)
        self._perceptual_net = {
            "efficientnet": None if shared else efficientnet,
            "vgg16": LazyFrozenNetwork(lambda: VGG16Features(load_vgg16(weights_dir), perceptual_layers)),
            "lpips": LazyFrozenNetwork(lambda: load_lpips(weights_dir)),
        }.get(perceptual)
        self.adversary: Adversary | None = None
        if adversarial_weight or perceptual == "discriminator":
            self.adversary = Adversary(
                shape,
                **discriminator,
                loss=adversarial,
                adaptive_weight_max=adaptive_weight_max,
                augment=diff_augment,
                features=efficientnet,
            )
        self.reconstruction_scores = ReconstructionScores(shape)

    # -- the autoencoder: pictures in [0, 1], latents (N, C, h, w)

    @property
    def inference_net(self) -> Network:
        """The moving average of the network if there is one."""
        return self.net if self.ema is None else cast(Network, self.ema.net)

    def train(self, mode: bool = True) -> Self:
        """Keep a frozen encoder in eval mode, in which a forward pass does not change it."""
        super().train(mode)
        if not self.trains_encoder:
            self.net.encoder.eval()
        return self

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """The encoder, and the decoder without its last layer, which the adaptive weight needs separately.

        Not the discriminator: a step runs one backward pass through it for each loss, and a compiled network may refuse the
        second (``donated_buffer`` in torch's functorch).
        """
        return [self.net.encoder, self.net.decoder.layers]

    @property
    def features_trained_with(self) -> str | None:
        """See ``ImageModel``."""
        projected = self.adversary is not None and isinstance(self.adversary.discriminator, ProjectedDiscriminator)
        found = ["EfficientNet-Lite0"] if projected or self.perceptual == "efficientnet" else []
        found += ["VGG-16"] if self.perceptual in ("vgg16", "lpips") else []
        return " and ".join(found) or None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self._latent_shape

    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> q(z|x), mean and logvar (N, C, h, w)."""
        return self.inference_net.encoder(2 * x - 1)

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, H, W) in [0, 1]."""
        return _to_unit_range(self.inference_net.decoder(z).float())

    def summary(self) -> str:
        """Describe the network in one line."""
        latent = " x ".join(map(str, self.latent_shape))
        discriminator = f", {self.adversary.description}" if self.adversary else ""
        start = f"{self.pretrained['kind']} of {self.pretrained['source']}, " if self.pretrained else ""
        return f"{start}{self.picture_shape} to latents of {latent}, down {self.factor} times{discriminator}"

    # -- the generator's objective, used in training and validation

    @property
    def current_beta(self) -> float:
        """Beta at this optimiser step."""
        warmup = self.to_steps(self.beta_warmup_steps)
        if self.optimizer_steps < warmup:
            return self.beta * self.optimizer_steps / warmup
        return self.beta

    @property
    def adversarial_factor(self) -> float:
        """The factor of the adversarial loss at this step, without the adaptive weight: 0 before its start."""
        start, ramp_steps = self.to_steps(self.adversarial_start_steps), self.to_steps(self.adversarial_ramp_steps)
        return self.guard.factor * self.adversarial_weight * ramp(self.optimizer_steps, start, ramp_steps)

    def objective(
        self, x: Tensor, label: Tensor, posterior: Posterior, x_hat: Tensor, shared: SharedFeatures | None
    ) -> dict[str, Tensor]:
        """The generator's loss without its adversarial term.

        (reconstruction + beta KL) / D + w_p perceptual + w_c cross-entropy + w_centre (pull + push), where D is the number of
        values in a picture: beta weighs nats against a sum over the picture, and the other terms are of order 1.

        Args:
            x: (N, C, H, W) in [-1, 1].
            label: (N,) int64, -1 where unlabelled.
            posterior: q(z|x).
            x_hat: (N, C, H, W) decoded from a draw z ~ q(z|x).
            shared: features of x and of x_hat that the discriminator uses, if pictures are compared in those.

        Returns:
            By name: ``loss``, ``loss_reconstruction`` (of a value), ``loss_kl`` in nats, ``loss_perceptual``, ``loss_class``,
            ``loss_center``, each (N,), and the scalar ``loss_center_push``; terms with weight 0 are left out.
        """
        error = absolute_error if self.reconstruction == "l1" else squared_error
        terms = {
            "loss_reconstruction": error(x_hat, x) / self.num_values,
            "loss_kl": kl_standard_normal(posterior.mean, posterior.logvar),
        }
        loss = terms["loss_reconstruction"] + self.current_beta * terms["loss_kl"] / self.num_values
        if self.perceptual != "none":
            terms["loss_perceptual"] = self._perceptual_distance(x, x_hat, shared)
            loss = loss + self.perceptual_weight * terms["loss_perceptual"]
        pooled = posterior.mean.mean((2, 3))  # (N, C)
        if self.class_weight:
            terms["loss_class"] = class_cross_entropy(self.class_head(pooled), label)
            loss = loss + self.class_weight * terms["loss_class"]
        if self.center_weight:
            terms["loss_center"] = center_pull(pooled, self.centers, label)
            terms["loss_center_push"] = center_push(self.centers, self.center_margin)
            loss = loss + self.center_weight * (terms["loss_center"] + terms["loss_center_push"])
        return {"loss": loss, **terms}

    def _perceptual_distance(self, x: Tensor, x_hat: Tensor, shared: SharedFeatures | None) -> Tensor:
        """(N,) float32, see ``objective``."""
        if shared is not None:
            distance = feature_distance if self.perceptual == "discriminator" else normalised_feature_distance
            return distance(shared[1], [features.detach() for features in shared[0]])
        assert self._perceptual_net is not None
        net = self._perceptual_net.on_device(x.device)
        if self.perceptual == "lpips":
            return net(x_hat, x).flatten().float()
        with torch.no_grad():
            features = net((x + 1) / 2)
        return normalised_feature_distance(net((x_hat + 1) / 2), features)

    # -- training: one forward pass of the autoencoder for both losses

    @property
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """See ``TwoOptimizers``."""
        return [] if self.adversary is None else list(self.adversary.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Compute the gradients of both networks from one reconstruction; step after the last batch of an optimiser step."""
        x = 2 * batch.image - 1
        posterior = self.net.encoder(x)
        z = posterior.sample(self.draw_for_step(normal, len(x), self.latent_shape, batch_idx, "posterior"))
        h = self.net.decoder.features(z)  # (N, c, H / stem_px, W / stem_px)
        x_hat = self.net.decoder.picture(h).float()  # (N, C, H, W)
        if self.adversary is None:
            terms = self.objective(x, batch.label, posterior, x_hat, None)
            self.manual_backward(terms["loss"].mean() / self.accumulation_steps)
        else:
            if batch_idx % self.accumulation_steps == 0:
                self.adversary.discriminator.update_spectral_norms()
            u = self.draw_for_step(uniform, len(x), (NUM_DRAWS,), batch_idx, "augmentation")
            terms = self._adversarial_step(self.adversary, x, batch.label, posterior, h, x_hat, u)
        self.record(terms)
        if (batch_idx + 1) % self.accumulation_steps == 0:
            self._step()

    def _adversarial_step(
        self, adversary: Adversary, x: Tensor, label: Tensor, posterior: Posterior, h: Tensor, x_hat: Tensor, u: Tensor
    ) -> dict[str, Tensor]:
        """Compute the gradients of both networks, evaluating each picture once, and those of the next adaptive weight."""
        # two views of one picture, each of which receives the gradient of its own losses
        x_nll, x_adversarial = x_hat.view_as(x_hat), x_hat.view_as(x_hat)
        factor = self.adversarial_factor
        inputs_real, inputs = adversary.discriminator_input(x, u), adversary.discriminator_input(x_nll, u)
        cut = [
            features.detach().requires_grad_(factor > 0) for features in inputs
        ]  # the beginning of the discriminator's graph
        real, fake = adversary.evaluate_input(inputs_real), adversary.evaluate_input(cut)
        grad = adversary.generator_gradient(fake, cut, inputs, x_nll) if factor else None
        loss_discriminator = adversary.discriminator_loss(real.logits, fake.logits).mean() / self.accumulation_steps
        self.manual_backward(loss_discriminator, inputs=list(adversary.parameters()))

        with frozen(adversary.discriminator):
            shared = (inputs_real, inputs)
            if self.perceptual == "discriminator":
                shared = (real.features, adversary.evaluate_input(inputs).features)
            terms = self.objective(x, label, posterior, x_nll, shared if self._compares_shared else None)
            loss = terms["loss"].mean()
            if grad is None:
                self.manual_backward(loss / self.accumulation_steps)
            else:
                weight = factor * adversary.adaptive_weight
                loss_adversarial = (grad * x_adversarial).sum() / len(x)  # has the gradient of the loss
                x_nll.retain_grad()
                x_adversarial.retain_grad()
                self.manual_backward((loss + weight * loss_adversarial) / self.accumulation_steps)
                grad_nll, grad_adversarial = cast(Tensor, x_nll.grad), cast(Tensor, x_adversarial.grad)
                adversary.add_last_layer_gradients(h.detach(), self.net.decoder.to_picture, grad_nll, grad_adversarial / weight)
        return self._with_adversarial(terms, adversary.metrics(real.logits.detach(), fake.logits.detach()))

    def _with_adversarial(self, terms: dict[str, Tensor], adversarial: dict[str, Tensor]) -> dict[str, Tensor]:
        """All terms to log; ``loss`` includes the adversarial term."""
        weighted = self.adversarial_factor * adversarial["adaptive_weight"] * adversarial["loss_adversarial"]
        return terms | adversarial | {"loss": terms["loss"].detach() + weighted}

    def _step(self) -> None:
        """Step both optimisers, and update what depends on their steps."""
        lr = self.step_optimizers()
        if self.ema is not None and not self.skips_step:
            self.ema.update(self.net, self.optimizer_steps)
        values = {"lr": lr, "beta": self.current_beta}
        if self.adversary is not None:
            values["adversarial_factor"] = self.adversarial_factor
            self.adversary.update_adaptive_weight(self.trainer.world_size, keep=self.skips_step)
        self.count_step(values)

    def on_train_start(self) -> None:
        """Refuse a training run that ends before its adversarial loss starts."""
        super().on_train_start()
        self.check_total_steps()

    def check_total_steps(self) -> None:
        """Check that the adversarial loss starts within the run, unless ``limit_train_batches`` makes it a trial."""
        start, limit = self.to_steps(self.adversarial_start_steps), self.trainer.limit_train_batches
        whole_epochs = isinstance(limit, float) and limit == 1.0  # the number 1 is a trial of one batch
        if self.adversarial_weight and start >= self.total_steps and whole_epochs:
            raise UserError(
                f"model.adversarial_start_steps={start} is never reached: this run has {self.total_steps} optimiser steps; "
                "lower it, raise trainer.max_epochs= or trainer.budget=, or switch it off with model.adversarial_weight=0"
            )

    # -- the end of an epoch

    @property
    def eligible_as_best(self) -> bool:
        """Whether the weights were trained with the full adversarial loss, and the guard accepts them."""
        if not self.adversarial_weight:
            return True
        end_of_ramp = self.to_steps(self.adversarial_start_steps) + self.to_steps(self.adversarial_ramp_steps)
        at_full_weight = min(end_of_ramp, self.total_steps)
        return self.optimizer_steps >= at_full_weight and not self.guard.failed

    def on_validation_epoch_end(self) -> None:
        """Provide the scores, and let the guard check them."""
        super().on_validation_epoch_end()
        if self.adversarial_weight:
            (psnr,) = (value for name, value in self.val_metrics.items() if name.endswith("/psnr"))
            self.guard.check(psnr, self.optimizer_steps > self.to_steps(self.adversarial_start_steps))

    def on_train_epoch_end(self) -> None:
        """Log; then keep this epoch as a good one, warn, or roll back."""
        validated = bool(self.val_metrics)
        super().on_train_epoch_end()
        if not (validated and self.adversarial_weight):
            return
        optimizers = [optimizer.optimizer for optimizer in self.list_optimizers()]
        if not self.guard.failed:
            self.guard.keep(self, optimizers)
            return
        if self.guard.roll_back(self, optimizers):
            what = (
                "rolled back to the last good epoch, with half the adversarial weight "
                f"({self.guard.num_rollbacks} of {MAX_ROLLBACKS})"
            )
        else:
            what = "see train/logit_gap, and lower model.adversarial_weight"
            what += ", or roll back automatically with model.guard=rollback" if self.guard.mode == "warn" else ""
        if self.trainer.is_global_zero:
            log.warning(
                f"epoch {self.trainer.current_epoch + 1}: validation PSNR is more than {self.guard.margin} dB below the best, "
                f"{self.guard.best_psnr} dB (model.guard_margin): {what}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the guard's state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["flowergen"]["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the guard's state."""
        super().on_load_checkpoint(checkpoint)
        self.guard.load_state_dict(checkpoint["flowergen"]["guard"])

    # -- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the scores of the batch."""
        self.val_means.update(self.scores(batch))

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's objective without augmentation, with z ~ q(z|x), adversarial metrics and reconstruction scores.

        The noise of picture i depends on (seed, i) alone.

        Returns:
            By name, each (N,): the terms of ``objective`` and ``ReconstructionScores``, and ``l1_perceptual``: mean absolute
            error of a value in [-1, 1] plus the weighted perceptual distance, which is 1 - SSIM with ``perceptual=none``, and
            with ``discriminator``, whose features change during training.
        """
        x, net = 2 * batch.image - 1, self.inference_net
        posterior = net.encoder(x)
        eps = normal_per_sample(batch.index, self.latent_shape, seed=self.seed, purpose="validation").to(self.device)
        x_hat = net.decoder(posterior.sample(eps)).float()
        outputs = None if self.adversary is None else (self.adversary.evaluate(x), self.adversary.evaluate(x_hat))
        shared = (outputs[0].features, outputs[1].features) if outputs and self._compares_shared else None
        terms = self.objective(x, batch.label, posterior, x_hat, shared)
        if self.adversary is not None and outputs is not None:
            terms = self._with_adversarial(terms, self.adversary.metrics(outputs[0].logits, outputs[1].logits))
        x_mean = _to_unit_range(net.decoder(posterior.mean).float())
        scores = self.reconstruction_scores(batch.image, _to_unit_range(x_hat), x_mean, posterior.mean)
        fixed = self.perceptual in ("efficientnet", "vgg16", "lpips")
        distance = self.perceptual_weight * terms["loss_perceptual"] if fixed else 1 - scores["ssim"]
        return terms | scores | {"l1_perceptual": absolute_error(x_hat, x) / self.num_values + distance}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """See ``ReconstructionScores.summarise``."""
        return self.reconstruction_scores.summarise(means)


def _to_unit_range(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return ((x + 1) / 2).clamp(0, 1)


def _residual_network(
    shape: PictureShape, latent: LatentShape, blocks: Blocks
) -> tuple[ResidualAutoencoder, tuple[int, int, int], int]:
    """Build the network, and return it with the shape (C, h, w) of its latents and the factor."""
    try:
        latent_shape, factor = latent.shape_for(shape), latent.factor_for(shape)
        network_factor = latent.network_factor_for(shape)
    except ValueError as error:
        raise UserError(f"model.latent: {error}") from error
    try:
        blocks.maps_for(network_factor)
    except ValueError as error:
        raise UserError(str(error)) from error
    return ResidualAutoencoder(shape, latent, blocks), latent_shape, factor
