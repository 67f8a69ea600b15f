"""The third stage of latent diffusion: training the decoder on the diffusion model's samples."""

import copy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowergen.data.batch import Batch
from flowergen.errors import UserError
from flowergen.losses.adversarial import hinge_discriminator, hinge_generator
from flowergen.losses.diff_augment import NUM_DRAWS, NUM_ZOOM_DRAWS, diff_augment, zoom
from flowergen.losses.perceptual import normalised_feature_distance
from flowergen.losses.reconstruction import absolute_error
from flowergen.metrics.reconstruction import psnr, ssim
from flowergen.modules.ema import EMA
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.lr_schedule import LrSchedule
from flowergen.modules.pretrained_weights import LazyFrozenNetwork, load_efficientnet
from flowergen.modules.two_optimizers import MakeOptimizer, TwoOptimizers
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.nn.class_projection import ClassProjection
from flowergen.nn.discriminator import frozen
from flowergen.nn.efficientnet import WIDTHS, num_maps_for
from flowergen.nn.posterior import Posterior
from flowergen.nn.projected_discriminator import ProjectedDiscriminator
from flowergen.picture_shape import ImageSize
from flowergen.randomness import normal, normal_per_sample, uniform

# the pictures of a batch that are also reconstructed: the same on any number of devices if 4 divides a device's batch size
RECONSTRUCTED_ROWS = slice(None, None, 4)


class DecoderModule(TwoOptimizers):
    """Adversarial training of a latent diffusion model's decoder on the model's own samples.

    An autoencoder's decoder is trained on latents of pictures only, z ~ q(z|x). A diffusion model's samples z_p ~ p(z|y) are
    distributed differently, and the decoder handles them badly. In a VAE-GAN, the discriminator sees decoded draws from the
    prior as well as reconstructions (Larsen et al. 2016, arXiv:1512.09300, algorithm 1); here the prior is the frozen diffusion
    model, whose samples are drawn once. The encoder and the latents do not change. With logits D of a projected discriminator
    and C_y of a ``ClassProjection``, hinge losses, and T = ``zoom`` after ``diff_augment``,

        decoder:        w_r (|x - Dec(z)| + w_p d(x, Dec(z))) - w_a (D + C_y)(T(Dec(z_p)))
        discriminator:  1/2 [max(0, 1 - D(T(x))) + max(0, 1 + D(T(Dec(z_p))))], and the same of C_y

    Args:
        image_size, image_channels: see ``ImageModel``.
        seed: seed of all noise.
        num_classes: number K of classes of the data set, 0 without labels.
        diffusion: the trained model. From now on it decodes with this module's decoder. It is not part of this module's state:
            its run folder is copied into the run's own.
        num_latents: number of samples that are drawn from it, once.
        reconstruction_weight, perceptual_weight: w_r, and w_p of the distance in EfficientNet-Lite0's features.
        adversarial_weight: w_a.
        channels: channels of the ``ProjectedDiscriminator``.
        optimizer, discriminator_optimizer, lr_schedule, lr_warmup_steps, accumulate_grad_batches, gradient_clip_val,
            gradient_clip_algorithm: see ``TwoOptimizers``.
        ema_decay: decay of the moving average of the decoder, used for everything except training.

    Raises:
        UserError: the diffusion model has no decoder, or that of a VAE.
    """

    best_metric = "psnr"  # unused, see ``eligible_as_best``
    best_mode = "max"

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        num_classes: int,
        diffusion: LatentDDPMModule,
        num_latents: int,
        reconstruction_weight: float,
        perceptual_weight: float,
        adversarial_weight: float,
        channels: int,
        optimizer: MakeOptimizer,
        discriminator_optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        lr_warmup_steps: float,
        ema_decay: float,
        accumulate_grad_batches: int,
        gradient_clip_val: float | None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
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
        autoencoder = diffusion.autoencoder if diffusion and diffusion.denoises else None
        if not isinstance(autoencoder, VAEGANModule):
            has = "works on pixels" if autoencoder is None else f"has the autoencoder of a {type(autoencoder).__name__}"
            raise UserError(f"diffusion: this model {has}, and model=decoder trains the decoder of a VAE-GAN")
        self.num_classes, self.num_latents = num_classes, num_latents
        self.reconstruction_weight, self.perceptual_weight = reconstruction_weight, perceptual_weight
        self.adversarial_weight, self.num_values = adversarial_weight, self.picture_shape.num_values
        self.diffusion_hash = fingerprint(diffusion.inference_net)

        self.net = copy.deepcopy(autoencoder.inference_net.decoder).requires_grad_(True)
        self.ema = EMA(self.net, ema_decay)
        autoencoder.inference_net.decoder = self.ema.net  # type: ignore[assignment]
        diffusion.decoder_steps = 0
        self._diffusion = [diffusion.requires_grad_(False).eval()]  # not in state_dict
        self._features = LazyFrozenNetwork(partial(load_efficientnet, "lite0", "model=decoder"))
        widths = WIDTHS[: num_maps_for(self.picture_shape)]
        self.discriminator = ProjectedDiscriminator(self.picture_shape, widths, channels, "group")
        self.class_projection = ClassProjection(widths[-1], num_classes, 8 * channels) if num_classes else None
        self.latents, self.labels = torch.empty(0), torch.empty(0, dtype=torch.int64)  # not buffers, which DDP would broadcast

    # -- pictures and latents

    @property
    def denoising_model(self) -> LatentDDPMModule:
        """The frozen model, on this module's device; it decodes with this module's averaged decoder."""
        return self._diffusion[0].on_device(self.device)

    @property
    def autoencoder(self) -> ImageModel | None:
        """The diffusion model's, with this module's averaged decoder."""
        return self.denoising_model.autoencoder

    @property
    def latents_fingerprint(self) -> str:
        """See ``ImageModel``."""
        return self._diffusion[0].latents_fingerprint

    @property
    def inference_net(self) -> nn.Module:
        """The averaged decoder."""
        return self.ema.net

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """The decoder."""
        return [self.net]

    @property
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """See ``TwoOptimizers``."""
        heads = [] if self.class_projection is None else list(self.class_projection.parameters())
        return [*self.discriminator.parameters(), *heads]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self._diffusion[0].latent_shape

    @property
    def features_trained_with(self) -> str | None:
        """See ``ImageModel``."""
        return self._diffusion[0].features_trained_with

    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> the autoencoder's q(z|x)."""
        return self.denoising_model.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, H, W) in [0, 1], by the averaged decoder."""
        return self.denoising_model.decode(z)

    def summary(self) -> str:
        """Describe the network in one line."""
        latent = " x ".join(map(str, self.latent_shape))
        return f"the decoder of latents of {latent}, on {self.num_latents:,} samples of {type(self._diffusion[0].net).__name__}"

    def use_samples(self, latents: Tensor, labels: Tensor) -> None:
        """Set the samples to train on: (P, C, h, w), in the autoencoder's units, of (P,) int64 classes, K for none."""
        self.latents, self.labels = latents, labels

    def on_train_start(self) -> None:
        """Move the samples to the device."""
        super().on_train_start()
        self.latents, self.labels = self.latents.to(self.device), self.labels.to(self.device)

    # -- training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Compute the gradients of both networks; step after the last batch of an optimiser step."""
        num, x = len(batch.label), 2 * batch.image - 1
        label = torch.where(batch.label < 0, self.num_classes, batch.label)
        u = self.draw_for_step(uniform, num, (), batch_idx, "sample")
        chosen = (u * len(self.latents)).long().clamp(max=len(self.latents) - 1)
        label_sampled = self.labels[chosen]
        eps = self.draw_for_step(normal, num, self.latent_shape, batch_idx, "posterior")[RECONSTRUCTED_ROWS]
        with torch.no_grad():
            z = self.encode(batch.image[RECONSTRUCTED_ROWS]).sample(eps)
        decoded = self.net(torch.cat((self.latents[chosen], z))).float()  # (N + N / 4, C, H, W)
        x_sampled, x_hat = decoded[:num], decoded[num:]

        features = self._features.on_device(x.device)
        with torch.no_grad():
            features_real = features((self._augmented(x, batch_idx, "augmentation") + 1) / 2)
        features_sampled = features((self._augmented(x_sampled, batch_idx, "augmentation of samples") + 1) / 2)
        real = self._logits(features_real, label)
        fake = self._logits([maps.detach() for maps in features_sampled], label_sampled)
        loss_discriminator = torch.stack([hinge_discriminator(*pair) for pair in zip(real, fake, strict=True)]).sum(0)  # (N,)
        self.manual_backward(loss_discriminator.mean() / self.accumulation_steps, inputs=self.discriminator_parameters)

        with frozen(self.discriminator), frozen(self.class_projection or nn.Identity()):
            loss_adversarial = torch.stack(
                [hinge_generator(logits) for logits in self._logits(features_sampled, label_sampled)]
            ).sum(0)
        terms = self._reconstruction_terms(x[RECONSTRUCTED_ROWS], x_hat)
        loss = self.reconstruction_weight * (
            terms["loss_reconstruction"].mean() + self.perceptual_weight * terms["loss_perceptual"].mean()
        )
        loss = loss + self.adversarial_weight * loss_adversarial.mean()
        self.manual_backward(loss / self.accumulation_steps)
        correct = torch.cat([real[0] > 0, fake[0] < 0], dim=1).float().flatten(1).mean(1)
        self.record(
            {
                "loss": loss.detach(),
                **{name: term.detach().mean() for name, term in terms.items()},
                "loss_adversarial": loss_adversarial.detach(),
                "loss_discriminator": loss_discriminator.detach(),
                "discriminator_accuracy": correct,
            }
        )
        if (batch_idx + 1) % self.accumulation_steps == 0:
            lr = self.step_optimizers()
            if not self.skips_step:
                self.ema.update(self.net, self.optimizer_steps)
            self.count_step({"lr": lr})

    def _augmented(self, x: Tensor, batch_idx: int, purpose: str) -> Tensor:
        """Apply T to pictures (N, C, H, W)."""
        u = self.draw_for_step(uniform, len(x), (NUM_DRAWS + NUM_ZOOM_DRAWS,), batch_idx, purpose)
        return zoom(diff_augment(x, u[:, :NUM_DRAWS]), u[:, NUM_DRAWS:])

    def _logits(self, features: list[Tensor], label: Tensor) -> list[Tensor]:
        """Return D (N, heads, 4, 4) and, if there are classes, C_y (N, 1), from frozen features."""
        logits = [self.discriminator(features).logits]
        return logits if self.class_projection is None else [*logits, self.class_projection(features[-1], label)]

    def _reconstruction_terms(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) in [-1, 1], both -> absolute error of a value and distance in frozen features, each (N,)."""
        features = self._features.on_device(x.device)
        with torch.no_grad():
            features_x = features((x + 1) / 2)
        return {
            "loss_reconstruction": absolute_error(x_hat, x) / self.num_values,
            "loss_perceptual": normalised_feature_distance(features((x_hat + 1) / 2), features_x),
        }

    # -- validation of reconstructions; callbacks.evaluation measures samples

    @property
    def eligible_as_best(self) -> bool:
        """False: no score of single pictures measures the quality of samples, so the last checkpoint is used."""
        return False

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the scores of the batch."""
        self.val_means.update(self.scores(batch))

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Both reconstruction terms, PSNR and SSIM, each (N,); the noise of picture i depends on (seed, i) alone."""
        posterior = self.encode(batch.image)
        eps = normal_per_sample(batch.index, self.latent_shape, seed=self.seed, purpose="validation").to(self.device)
        x_hat = self.ema.net(posterior.sample(eps)).float()
        x_mean = self.decode(posterior.mean)
        return {
            **self._reconstruction_terms(2 * batch.image - 1, x_hat),
            "psnr": psnr(x_mean, batch.image),
            "ssim": ssim(x_mean, batch.image),
        }

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the hash of the diffusion model."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["flowergen"]["diffusion"] = self.diffusion_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another diffusion model.

        Raises:
            UserError: the checkpoint was trained on the samples of another one.
        """
        if checkpoint["flowergen"].get("diffusion") != self.diffusion_hash:
            raise UserError(
                "the checkpoint was trained on the samples of a diffusion model other than the one in its run folder"
            )
        super().on_load_checkpoint(checkpoint)
        self._diffusion[0].decoder_steps = self.optimizer_steps
