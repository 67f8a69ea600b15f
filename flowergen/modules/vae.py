"""The plain convolutional (beta-)VAE as a LightningModule."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowergen.data.batch import Batch
from flowergen.losses.kl import kl_standard_normal
from flowergen.losses.mmd import mmd_imq
from flowergen.losses.reconstruction import absolute_error, bernoulli, gaussian, optimal_log_sigma, squared_error
from flowergen.modules.ema import EMA
from flowergen.modules.image_model import ImageModel, MakeOptimizer
from flowergen.modules.lr_schedule import LrSchedule
from flowergen.modules.reconstruction_scores import ReconstructionScores
from flowergen.nn.conv_vae import ConvDecoder, ConvEncoder, stage_channels
from flowergen.nn.posterior import Posterior
from flowergen.picture_shape import ImageSize
from flowergen.randomness import normal, normal_per_sample


class VAEModule(ImageModel):
    """Auto-encoding variational Bayes (arXiv:1312.6114), with the weight beta on the KL (Higgins et al. 2017).

    With ``divergence=mmd`` it is the Wasserstein autoencoder (Tolstikhin et al. 2018, arXiv:1711.01558) with a random encoder.

    Pictures are in [0, 1] at the interface and in ``pixel_range`` in the network.

    Args:
        image_size, image_channels: see ``ImageModel``; 28 to 256 px a side.
        seed: of the noise in the latent space.
        channels, latent_dim, norm, activation, residual_blocks: see ``nn.conv_vae``.
        pixel_range: (0, 1) or (-1, 1), the range of the network's input and of the likelihood.
        reconstruction: the likelihood, see ``losses.reconstruction``.
        sigma: for ``gaussian``: ``optimal`` (of each batch, arXiv:2006.13202) or a ``learned`` parameter.
        reconstruction_reduction: ``sum`` over pixels, the ELBO, or ``mean`` over them.
        divergence: weighted by beta: ``kl`` from each posterior to the prior, or ``mmd`` between the batch's latents and the
            prior.
        beta: weight of the divergence: 1 is the ELBO for ``kl``; for ``mmd``, which is at most 14, it is that paper's lambda.
        beta_warmup_steps: number (or fraction) of optimiser steps in which beta grows linearly from 0.
        optimizer: builds the optimiser from the parameters.
        lr_schedule, lr_warmup_steps: see ``lr_factor``.
        ema_decay: of the moving average of the network's weights (not of a learned sigma), used for everything except
            training; None for none.
    """

    best_metric = "elbo"  # the common ELBO on validation pictures
    best_mode = "max"

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        channels: list[int],
        latent_dim: int,
        norm: Literal["batch", "group", "none"],
        activation: Literal["relu", "leaky_relu", "silu", "gelu"],
        residual_blocks: int,
        pixel_range: tuple[float, float],
        reconstruction: Literal["mse", "bce", "l1", "gaussian"],
        sigma: Literal["optimal", "learned"],
        reconstruction_reduction: Literal["sum", "mean"],
        divergence: Literal["kl", "mmd"],
        beta: float,
        beta_warmup_steps: float,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        lr_warmup_steps: float,
        ema_decay: float | None,
        image_channels: int = 3,
    ):
        super().__init__(image_size, seed, lr_schedule, lr_warmup_steps, image_channels)
        self.channels, self.latent_dim = channels, latent_dim
        self.pixel_range = self.pixel_min, self.pixel_max = pixel_range
        self.decoder_activation = "sigmoid" if self.pixel_min == 0 else "tanh"
        self.reconstruction, self.sigma = reconstruction, sigma
        self.loss_scale = 1.0 if reconstruction_reduction == "sum" else 1 / self.picture_shape.num_values
        self.divergence, self.beta, self.beta_warmup_steps = divergence, beta, beta_warmup_steps
        self.make_optimizer = optimizer

        network = (self.picture_shape, channels, latent_dim, norm, activation, residual_blocks)
        self.net = nn.ModuleDict({"encoder": ConvEncoder(*network), "decoder": ConvDecoder(*network)})
        if reconstruction == "gaussian" and sigma == "learned":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        self.ema = EMA(self.net, ema_decay) if ema_decay is not None else None
        self.reconstruction_scores = ReconstructionScores(self.picture_shape)

    # -- the autoencoder: pictures in [0, 1], latents (N, D, 1, 1)

    @property
    def inference_net(self) -> nn.Module:
        """The moving average of the network if there is one."""
        return self.net if self.ema is None else self.ema.net

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """The encoder and the decoder."""
        return [self.net["encoder"], self.net["decoder"]]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, 1, 1)."""
        return self.latent_dim, 1, 1

    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> q(z|x), mean and logvar (N, D, 1, 1)."""
        return self._encode(self.inference_net, x)

    def decode(self, z: Tensor) -> Tensor:
        """(N, D, 1, 1) -> (N, C, H, W) in [0, 1]."""
        return self._to_unit_range(self.activate(self._decode(self.inference_net, z)))

    def _encode(self, net: nn.Module, x: Tensor) -> Posterior:
        return net["encoder"](self.pixel_min + x * (self.pixel_max - self.pixel_min))  # type: ignore[index]

    def _decode(self, net: nn.Module, z: Tensor) -> Tensor:
        return net["decoder"](z).float()  # type: ignore[index]

    def activate(self, logits: Tensor) -> Tensor:
        """The decoder's output -> values in ``pixel_range``."""
        return logits.sigmoid() if self.decoder_activation == "sigmoid" else logits.tanh()

    def _to_unit_range(self, x: Tensor) -> Tensor:
        return (x - self.pixel_min) / (self.pixel_max - self.pixel_min)

    def summary(self) -> str:
        """Describe the network in one line."""
        widths = "-".join(map(str, stage_channels(self.picture_shape, self.channels)))
        return f"{self.picture_shape} through {widths} channels to {self.latent_dim} latent dimensions"

    # -- the objective, used in training and validation

    @property
    def current_beta(self) -> float:
        """Beta at this optimiser step."""
        warmup = self.to_steps(self.beta_warmup_steps)
        if self.optimizer_steps < warmup:
            return self.beta * self.optimizer_steps / warmup
        return self.beta

    def objective(
        self, x: Tensor, posterior: Posterior, z: Tensor, logits: Tensor, z_prior: Tensor | None
    ) -> dict[str, Tensor]:
        """-ELBO = -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)), equation 3 of arXiv:1312.6114, in nats.

        With ``divergence=mmd``, it is equation 4 of arXiv:1711.01558, whose penalty applies to the batch's latents as a whole.

        Args:
            x: (N, C, H, W) in [0, 1].
            posterior: q(z|x).
            z: (N, D, 1, 1) drawn from the posterior.
            logits: (N, C, H, W) the decoder's output for z.
            z_prior: (N, D, 1, 1) drawn from N(0, I), for ``mmd``; unused otherwise.

        Returns:
            By name: ``loss``, ``loss_reconstruction``, ``loss_kl``, each (N,); the scalars ``sigma`` for ``gaussian`` and
            ``loss_mmd`` for ``mmd``.
        """
        target = self.pixel_min + x * (self.pixel_max - self.pixel_min)  # (N, C, H, W)
        terms = self.reconstruction_terms(logits, target)
        distortion = terms.pop("loss_reconstruction") * self.loss_scale  # (N,)
        divergence = kl = kl_standard_normal(posterior.mean, posterior.logvar)  # (N,)
        if self.divergence == "mmd":
            assert z_prior is not None
            divergence = terms["loss_mmd"] = mmd_imq(z, z_prior)  # ()
        return {"loss": distortion + self.current_beta * divergence, "loss_reconstruction": distortion, "loss_kl": kl, **terms}

    def reconstruction_terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """-log p(x|z) of each picture, for the likelihood given by ``reconstruction``; override it for a custom loss.

        Args:
            logits: (N, C, H, W) the decoder's output, which ``activate`` maps to the range of the target.
            target: (N, C, H, W) in ``pixel_range``.

        Returns:
            ``loss_reconstruction`` (N,), summed over the values of a picture; for ``gaussian`` also the scalar ``sigma``.
        """
        if self.reconstruction == "bce":
            return {"loss_reconstruction": bernoulli(logits, target)}
        x_hat = self.activate(logits)
        if self.reconstruction == "l1":
            return {"loss_reconstruction": absolute_error(x_hat, target)}
        if self.reconstruction == "mse":
            return {"loss_reconstruction": squared_error(x_hat, target)}
        log_sigma = self.log_sigma if self.sigma == "learned" else optimal_log_sigma(x_hat, target)
        return {"loss_reconstruction": gaussian(x_hat, target, log_sigma), "sigma": log_sigma.exp()}

    # -- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean objective of the batch."""
        x, shape = batch.image, self.latent_shape
        posterior = self._encode(self.net, x)
        z = posterior.sample(self.draw_for_step(normal, len(x), shape, batch_idx, "posterior"))
        z_prior = self.draw_for_step(normal, len(x), shape, batch_idx, "prior") if self.divergence == "mmd" else None
        terms = self.objective(x, posterior, z, self._decode(self.net, z), z_prior)
        self.record(terms)
        return terms["loss"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser; ``optimizer_step`` sets its learning rate, by our own step count."""
        return self.build_optimizer(self.make_optimizer, [p for p in self.parameters() if p.requires_grad])

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step at the scheduled learning rate, then update the moving average."""
        self.set_learning_rate(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None and not self.skips_step:
            self.ema.update(self.net, self.optimizer_steps)
        self.count_step({"lr": optimizer.param_groups[0]["lr"], "beta": self.current_beta})

    # -- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the scores of the batch."""
        self.val_means.update(self.scores(batch))

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of ``objective`` and ``ReconstructionScores``; the noise of picture i depends on (seed, i) alone."""
        x, net = batch.image, self.inference_net
        posterior = self._encode(net, x)
        draw = partial(normal_per_sample, batch.index, self.latent_shape, seed=self.seed)
        z = posterior.sample(draw(purpose="validation").to(self.device))
        z_prior = draw(purpose="validation prior").to(self.device) if self.divergence == "mmd" else None
        logits = self._decode(net, z)
        x_hat = self._to_unit_range(self.activate(logits))
        x_mean = self._to_unit_range(self.activate(self._decode(net, posterior.mean)))
        terms = self.objective(x, posterior, z, logits, z_prior)
        return terms | self.reconstruction_scores(x, x_hat, x_mean, posterior.mean)

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """See ``ReconstructionScores.summarise``."""
        return self.reconstruction_scores.summarise(means)
