"""Class-conditional diffusion in the latent space of an autoencoder, or on pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from flowergen.data.batch import Batch, LatentBatch
from flowergen.diffusion.combinations import latent_refusal, refusal, sampler_refusal
from flowergen.diffusion.guidance import Network, guided_prediction
from flowergen.diffusion.objective import Objective, min_snr_weight, predictions, target
from flowergen.diffusion.samplers import sampler_of
from flowergen.diffusion.schedule import Level, schedule_of
from flowergen.diffusion.steps import Predict, last_of
from flowergen.errors import UserError
from flowergen.losses.alignment import alignment_loss
from flowergen.modules.ema import EMA
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel, MakeOptimizer
from flowergen.modules.lr_schedule import LrSchedule
from flowergen.modules.running_means import RunningMeans
from flowergen.nn.efficientnet import feature_shape_for
from flowergen.nn.feature_head import FeatureHead
from flowergen.nn.posterior import LOGVAR_MIN, Posterior
from flowergen.picture_shape import ImageSize
from flowergen.randomness import generator, normal, normal_per_sample, stratified, uniform

ALIGNED_WITH = "EfficientNet-Lite0"
NUM_LEVELS = 4  # parts of the time axis whose validation losses are logged separately


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample.

    Attributes:
        sampler: key of ``SAMPLERS``.
        steps: of the sampler.
        guidance_scale: 1 for no guidance.
        guidance_interval: lowest and highest t / T with guidance, 0 is clean, 1 is noise.
        eta: of ``ddim``: 0 deterministic, 1 ancestral.
    """

    sampler: str
    steps: int
    guidance_scale: float
    guidance_interval: Sequence[float]
    eta: float


class LatentDDPMModule(ImageModel):
    """Denoising diffusion (arXiv:2006.11239) of an autoencoder's latents (Rombach et al. 2022, arXiv:2112.10752).

    Latents are scaled to mean 0 and standard deviation 1 for each channel. The autoencoder is frozen, and is not part of this
    module's state: its run folder is copied into the run's own.

    Args:
        image_size, image_channels: see ``ImageModel``.
        seed: of noise, times and class dropout.
        num_classes: K, 0 without labels.
        autoencoder: encodes and decodes; None for diffusion on pixels, scaled to [-1, 1].
        network: builds the denoiser from ``shape`` and ``num_classes``.
        objective: what it predicts, see ``diffusion.objective``.
        schedule: of the noise; ``flow`` has its own, ``StraightPath``.
        num_timesteps: T.
        zero_terminal_snr: rescale the schedule so that the last step is pure noise.
        time_sampling: for ``flow``, see ``StraightPath``.
        weighting: of the loss over noise levels, see ``min_snr_weight``.
        min_snr_gamma: for ``weighting=min_snr``.
        class_dropout: probability that the class of a training picture is withheld, for guidance.
        latent_cache: encode all pictures once, instead of each batch at each step.
        sampling: for the pictures during training, and the default of ``flowergen.sample``, see ``SamplingSettings``.
        optimizer: builds the optimiser from the parameters.
        lr_schedule, lr_warmup_steps: see ``lr_factor``.
        ema_decay: of the moving average of the denoiser's weights, which is used for everything except training; None for none.
        alignment_weight: weight of ``alignment_loss``, the distance between hidden features of the denoiser and features of the
            picture from EfficientNet-Lite0; 0 for none. Requires cached spatial latents, and a network with ``hidden_channels``
            whose ``forward`` takes ``with_hidden``, such as UNet and DiT.

    Raises:
        UserError: for a combination that makes no sense.
    """

    denoises = True
    best_metric = "loss"  # of the moving average
    best_mode = "min"
    compares_with_training = True  # logs val/loss_train beside val/loss: memorising begins where they diverge

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        num_classes: int,
        autoencoder: ImageModel | None,
        network: Callable[..., nn.Module],
        objective: Objective,
        schedule: Literal["linear", "cosine"],
        num_timesteps: int,
        zero_terminal_snr: bool,
        time_sampling: Literal["uniform", "logit_normal"],
        weighting: Literal["none", "min_snr"],
        min_snr_gamma: float,
        class_dropout: float,
        latent_cache: bool,
        sampling: dict[str, Any],
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        lr_warmup_steps: float,
        ema_decay: float | None,
        alignment_weight: float = 0.0,
        image_channels: int = 3,
    ):
        super().__init__(image_size, seed, lr_schedule, lr_warmup_steps, image_channels)
        reason = refusal(objective, zero_terminal_snr, time_sampling, weighting)
        reason = reason or (latent_refusal(objective, schedule) if autoencoder else None)
        if reason:
            raise UserError(f"model.objective={objective}: {reason}")
        self.num_classes, self.objective, self.class_dropout = num_classes, objective, class_dropout
        self.gamma = min_snr_gamma if weighting == "min_snr" else None
        self.schedule = schedule_of(objective, schedule, num_timesteps, zero_terminal_snr, time_sampling)
        self.latent_cache, self.sampling = latent_cache, SamplingSettings(**sampling)
        self.make_optimizer = optimizer

        self._autoencoder = [autoencoder.requires_grad_(False).eval()] if autoencoder else []  # not in state_dict
        self.autoencoder_hash = fingerprint(autoencoder.inference_net) if autoencoder else "pixels"
        shape: tuple[int, int, int] = autoencoder.latent_shape if autoencoder else self.picture_shape
        self._latent_shape = shape
        try:
            self.net = network(shape=shape, num_classes=num_classes)
        except ValueError as error:
            raise UserError(f"model.network: {error}") from error
        self.ema = EMA(self.net, ema_decay) if ema_decay is not None else None
        self.alignment_weight = alignment_weight
        if alignment_weight:
            if shape[1:] == (1, 1):
                raise UserError("model.alignment_weight needs latents with positions, and these are flat: set it to 0")
            if "with_hidden" not in signature(self.net.forward).parameters:
                raise UserError(
                    "model.alignment_weight needs a network that returns its hidden features, as UNet and DiT do: set it to 0"
                )
            channels = feature_shape_for(self.picture_shape)[0]
            self.feature_head = FeatureHead(self.net.hidden_channels, channels)  # type: ignore[arg-type]
            self.feature_mean = nn.Buffer(torch.zeros(channels, 1, 1))
            self.feature_std = nn.Buffer(torch.ones(channels, 1, 1))
        self.latent_mean, self.latent_std = nn.Buffer(torch.zeros(shape[0], 1, 1)), nn.Buffer(torch.ones(shape[0], 1, 1))
        self.train_means = RunningMeans()  # of training pictures, scored as the held-out ones are

    # -- pictures and latents

    @property
    def inference_net(self) -> nn.Module:
        """The moving average of the denoiser if there is one."""
        return self.net if self.ema is None else self.ema.net

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """The denoiser."""
        return [self.net]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents, or of the pictures."""
        return self._latent_shape

    @property
    def autoencoder(self) -> ImageModel | None:
        """The frozen autoencoder, on this module's device; None on pixels."""
        return self._autoencoder[0].on_device(self.device) if self._autoencoder else None

    @property
    def denoising_model(self) -> Self:
        """This model."""
        return self

    @property
    def latents_fingerprint(self) -> str:
        """The autoencoder's."""
        return self.autoencoder_hash

    @property
    def features_trained_with(self) -> str | None:
        """Those of the autoencoder, of the alignment, and of the decoder's own training."""
        of_autoencoder = self._autoencoder[0].features_trained_with if self._autoencoder else None
        if not (self.alignment_weight or self.decoder_steps is not None) or ALIGNED_WITH in (of_autoencoder or ""):
            return of_autoencoder
        return f"{ALIGNED_WITH} and {of_autoencoder}" if of_autoencoder else ALIGNED_WITH

    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> the autoencoder's q(z|x); on pixels, a posterior of almost no variance."""
        if self.autoencoder:
            return self.autoencoder.encode(x)
        return Posterior(2 * x - 1, torch.full_like(x, LOGVAR_MIN))

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) in the autoencoder's units -> (N, C, H, W) in [0, 1]."""
        return self.autoencoder.decode(z) if self.autoencoder else ((z + 1) / 2).clamp(0, 1)

    def set_latent_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set the scale of the latents: mean and standard deviation, each (C,), over the whole training split."""
        self.latent_mean.copy_(mean.view(-1, 1, 1))
        self.latent_std.copy_(std.view(-1, 1, 1))

    def set_feature_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set the scale, (K,) likewise, of the features that the denoiser's hidden features are aligned with."""
        self.feature_mean.copy_(mean.view(-1, 1, 1))
        self.feature_std.copy_(std.view(-1, 1, 1))

    def scaled(self, z: Tensor) -> Tensor:
        """The autoencoder's latents -> x_0, mean 0 and standard deviation 1 for each channel."""
        return (z - self.latent_mean) / self.latent_std

    def unscaled(self, x0: Tensor) -> Tensor:
        """x_0 -> the autoencoder's latents."""
        return x0 * self.latent_std + self.latent_mean

    def summary(self) -> str:
        """Describe the network in one line."""
        latent = " x ".join(map(str, self.latent_shape))
        where = f"latents of {latent}" if self._autoencoder else f"pixels, {latent}"
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        decoder = f", decoder trained on samples for {self.decoder_steps:,} steps" if self.decoder_steps is not None else ""
        return f"{type(self.net).__name__} on {where}, {classes}, predicts {self.objective}{decoder}"

    @property
    def denoising_task(self) -> str:
        """Identifies the denoising task; losses are comparable only if it matches."""
        weighting = f"min-SNR, gamma {self.gamma:g}" if self.gamma is not None else "no weighting"
        schedule = type(self.schedule).__name__
        return f"{self.objective} on {schedule} ({self.schedule.num_timesteps} times), {weighting}, of {self.autoencoder_hash}"

    # -- the objective, used in training and validation

    def losses(self, net: Network, x0: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """w(t) |net(x_t, t, label) - target|^2, the mean over the values of a latent.

        Source: arXiv:2006.11239, equation 14, with the target of ``diffusion.objective``.

        Args:
            net: the denoiser.
            x0: (N, C, h, w) scaled latents.
            eps: (N, C, h, w) noise.
            t: (N,) times.
            label: (N,) int64, K for no class.

        Returns:
            (N,).
        """
        alpha, sigma = self.schedule.at(t)
        a, s = alpha[:, None, None, None], sigma[:, None, None, None]
        output = net(a * x0 + s * eps, t, label).float()
        loss = (output - target(self.objective, x0, eps, a, s)).square().flatten(1).mean(1)  # (N,)
        return loss if self.gamma is None else min_snr_weight(self.objective, alpha, sigma, self.gamma) * loss

    def _posterior(self, batch: Batch | LatentBatch) -> Posterior:
        if isinstance(batch, LatentBatch):
            return Posterior(batch.mean, batch.logvar)
        with torch.no_grad():
            return self.encode(batch.image)

    def _label_or_none(self, label: Tensor) -> Tensor:
        """-1 -> K."""
        return torch.where(label < 0, self.num_classes, label)

    # -- training

    def training_step(self, batch: Batch | LatentBatch, batch_idx: int) -> Tensor:
        """Mean loss of the batch at random times, noise and latents, plus the weighted alignment loss if there is one."""
        num, shape = len(batch.label), self.latent_shape
        x0 = self.scaled(self._posterior(batch).sample(self.draw_for_step(normal, num, shape, batch_idx, "posterior")))
        t = self.schedule.times(self.draw_for_step(stratified, num, (), batch_idx, "time"))
        eps = self.draw_for_step(normal, num, shape, batch_idx, "diffusion")
        dropped = self.draw_for_step(uniform, num, (), batch_idx, "class dropout") < self.class_dropout
        label = torch.where(dropped, self.num_classes, self._label_or_none(batch.label))
        if not self.alignment_weight:
            terms = {"loss": self.losses(self.net, x0, eps, t, label)}
            self.record(terms)
            return terms["loss"].mean()
        assert isinstance(batch, LatentBatch)
        hidden = torch.empty(0)

        def denoiser(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            nonlocal hidden
            output, hidden = self.net(x, t, label, with_hidden=True)
            return output

        loss = self.losses(denoiser, x0, eps, t, label)
        features = (batch.features - self.feature_mean) / self.feature_std  # (N, K, h', w') float32
        alignment = alignment_loss(self.feature_head(hidden, features.shape[-2:]), features)
        self.record({"loss": loss, "loss_alignment": alignment})
        return (loss + self.alignment_weight * alignment).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser; ``optimizer_step`` sets its learning rate, by our own step count."""
        heads = self.feature_head.parameters() if self.alignment_weight else ()
        return self.build_optimizer(self.make_optimizer, [*self.net.parameters(), *heads])

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step at the scheduled learning rate, then update the moving average."""
        self.set_learning_rate(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None and not self.skips_step:
            self.ema.update(self.net, self.optimizer_steps)
        self.count_step({"lr": optimizer.param_groups[0]["lr"]})

    # -- validation

    def validation_step(self, batch: Batch | LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the scores of a batch of held-out pictures or, from the second loader, of training pictures."""
        (self.train_means if dataloader_idx else self.val_means).update(self.scores(batch))

    def scores(self, batch: Batch | LatentBatch, seed: int | None = None) -> dict[str, Tensor]:
        """The loss of the moving average in each quarter of the training times, and the mean of the four.

        Args:
            batch: of any pictures.
            seed: of times and noise; those of picture i depend on (seed, i) alone. None for the module's seed.

        Returns:
            ``loss`` and ``loss_noise_1`` (the least noise) to ``loss_noise_4``, each (N,).
        """
        index, shape = batch.index, self.latent_shape
        seed = self.seed if seed is None else seed
        draw = partial(normal_per_sample, index, shape, seed=seed)
        x0 = self.scaled(self._posterior(batch).sample(draw(purpose="validation").to(self.device)))
        label = self._label_or_none(batch.label)
        u = torch.tensor([generator(seed, i, "validation time").random() for i in index.tolist()], dtype=torch.float64)
        terms = {}
        for level in range(NUM_LEVELS):
            t = self.schedule.times((level + u) / NUM_LEVELS).to(self.device)
            eps = draw(purpose=f"validation noise {level}").to(self.device)
            terms[f"loss_noise_{level + 1}"] = self.losses(self.inference_net, x0, eps, t, label)
        return {"loss": torch.stack(list(terms.values())).mean(0), **terms}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Add the losses of training pictures, ``loss_train`` and ``loss_train_noise_1`` to ``4``."""
        train = {f"loss_train{name.removeprefix('loss')}": value for name, value in self.train_means.compute().items()}
        self.train_means.reset()
        return means | train

    # -- sampling

    def denoised(
        self, index: Sequence[int], label: Tensor, seed: int, sampling: SamplingSettings, net: Network | None = None
    ) -> Tensor:
        """The result of ``denoise``: (N, C, h, w) latents in the autoencoder's units."""
        return self.unscaled(last_of(self.denoise(index, label, seed, sampling, net), torch.empty(0)))

    def denoise(
        self, index: Sequence[int], label: Tensor, seed: int, sampling: SamplingSettings, net: Network | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Denoise step by step; the last x_t is the sample.

        Args:
            index: (N,) numbers of the samples; sample i depends on (seed, i) and its class alone.
            label: (N,) int64 classes; K for none.
            seed: of the noise.
            sampling: the method.
            net: the denoiser; None for ``inference_net``, of which a compiled copy is faster for many samples.

        Yields:
            x_t after the step and x0_hat before it, each (N, C, h, w), scaled as x_0 is.

        Raises:
            UserError: see ``levels``.
        """
        predict, levels = self.predictor(label, sampling, net), self.levels(sampling)
        draw = partial(normal_per_sample, index, self.latent_shape, seed=seed)
        sampler = sampler_of(sampling.sampler, sampling.eta)
        x = draw(purpose="prior").to(self.device)
        yield from sampler(predict, x, levels, lambda step: draw(purpose=f"step {step}").to(self.device))

    def levels(self, sampling: SamplingSettings) -> list[Level]:
        """Return the noise levels of a sampling method, from the noisiest to ``CLEAN``.

        Raises:
            UserError: the sampler does not fit the objective, or the schedule has fewer steps.
        """
        reason = sampler_refusal(self.objective, sampling.sampler)
        if reason:
            raise UserError(f"sampler={sampling.sampler}: {reason}")
        try:
            return self.schedule.levels(sampling.steps)
        except ValueError as error:
            raise UserError(f"steps: {error}") from error

    def predictor(self, label: Tensor, sampling: SamplingSettings, net: Network | None = None) -> Predict:
        """Return the guided prediction of x0_hat and eps_hat, as samplers call it; see ``denoise`` for the arguments."""
        low, high = sampling.guidance_interval
        scale = sampling.guidance_scale if bool((label != self.num_classes).any()) else 1.0  # for any class
        label, pixels = label.to(self.device), not self._autoencoder
        denoiser = self.inference_net if net is None else net

        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            output = guided_prediction(
                denoiser, x, level.t, label, self.num_classes, scale, (low, high), self.schedule.num_timesteps
            )
            x0_hat, eps_hat = predictions(self.objective, output, x, level.alpha, level.sigma)
            if pixels:  # pixels lie in [-1, 1] (arXiv:2006.11239, appendix B)
                x0_hat = x0_hat.clamp(-1, 1)
                eps_hat = (x - level.alpha * x0_hat) / level.sigma
            return x0_hat, eps_hat

        return predict

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the hash of the autoencoder."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["flowergen"]["autoencoder"] = self.autoencoder_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another autoencoder.

        Raises:
            UserError: its latents and their scale are different.
        """
        if checkpoint["flowergen"].get("autoencoder") != self.autoencoder_hash:
            raise UserError("the checkpoint was trained on the latents of an autoencoder other than the one in its run folder")
        super().on_load_checkpoint(checkpoint)
