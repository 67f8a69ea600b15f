"""The interface of all models, and the bookkeeping that they share."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from flowergen.lightning_internals import precision_of
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.finite_watch import FiniteWatch, NotFinite
from flowergen.modules.lr_schedule import LrSchedule, lr_factor, num_steps
from flowergen.modules.run_state import RunState
from flowergen.modules.running_means import RunningMeans, batch_sums
from flowergen.nn.posterior import Posterior
from flowergen.picture_shape import ImageSize, PictureShape
from flowergen.randomness import noise_of

if TYPE_CHECKING:
    from flowergen.modules.latent_ddpm import LatentDDPMModule

log = logging.getLogger(__name__)

MakeOptimizer = Callable[..., torch.optim.Optimizer]  # builds an optimiser from the parameters
FUSED_ON = ("cuda", "cpu")  # device types
MAX_SKIPPED = 20  # consecutive steps; a model that has diverged does not recover


class ImageModel(LightningModule, ABC):
    """A model of pictures in [0, 1], with latents (N, C, h, w).

    It counts its own optimiser steps, because Lightning's ``global_step`` counts the steps of every optimiser. Means over
    pictures are logged at that count, directly to the loggers, so that they are on disk before a checkpoint is written.
    Both are stored in the checkpoint.

    Args:
        image_size: size of the pictures in px: the side of a square, or height and width.
        seed: seed of all noise.
        lr_schedule, lr_warmup_steps: see ``lr_factor``; they apply to all optimisers. Like every number of steps of a model,
            ``lr_warmup_steps`` may be a fraction below 1 of the run's steps.
        image_channels: 3 for colour, 1 for grey.
    """

    best_metric: ClassVar[str]  # the validation metric that chooses best.ckpt
    best_mode: ClassVar[Literal["min", "max"]]
    denoises: ClassVar[bool] = False  # a diffusion model; where there are classes, each of its samples has one
    decoder_steps: int | None = None  # steps that ``DecoderModule`` trained the decoder for; None for the autoencoder's own
    pixel_range: Sequence[float] = (-1, 1)  # range of the values in an autoencoder's networks
    decoder_activation: str | None = None  # maps the decoder's output to this range: ``sigmoid``, ``tanh`` or ``clamp``
    on_nonfinite: Literal["stop", "skip"] = "stop"  # trainer.on_nonfinite

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        lr_schedule: LrSchedule = "constant",
        lr_warmup_steps: float = 0,
        image_channels: int = 3,
    ):
        super().__init__()
        self.picture_shape, self.seed = PictureShape.of(image_size, image_channels), seed
        self.lr_schedule, self.lr_warmup_steps = lr_schedule, lr_warmup_steps
        self.optimizer_steps = 0
        self.total_steps = 0  # optimiser steps of the run; 0 without training, when any fraction of it has passed
        self._passed_fractions: dict[float, int] = {}  # fraction -> steps
        self._earlier_noise: str | None = None  # ``noise_of`` the device that the resumed run was trained on
        self.epoch_means, self.recent_means, self.val_means = RunningMeans(), RunningMeans(), RunningMeans()
        self.val_metrics: dict[str, float] = {}
        self.epoch_metrics: dict[str, float] = {}  # metrics of the last epoch, including its validation if there was one
        self.finite_watch, self.run_state = FiniteWatch(), RunState()
        self.skips_step = False  # whether this optimiser step is skipped
        self._consecutive_skips = 0
        self._buffers_before: dict[str, Tensor] = {}

    # -- the interface

    @property
    @abstractmethod
    def inference_net(self) -> nn.Module:
        """The network that encodes, decodes and samples: the moving average if there is one."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""

    @abstractmethod
    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> q(z|x), mean and logvar (N, C, h, w)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, H, W) in [0, 1]."""

    @abstractmethod
    def summary(self) -> str:
        """Describe the network in one line."""

    @property
    def autoencoder(self) -> "ImageModel | None":
        """The model that encodes pictures and decodes latents: this one, or the one it was trained on; None on pixels."""
        return self

    @property
    def denoising_model(self) -> "LatentDDPMModule | None":
        """The diffusion model that samples are drawn from: this one, or the one whose decoder it trains; None for others."""
        return None

    @property
    def sampling_model(self) -> "ImageModel":
        """The model that samples are drawn from: ``denoising_model``, or this one."""
        return self.denoising_model or self

    @property
    def latents_fingerprint(self) -> str:
        """Fingerprint of the network that defines the latents."""
        return fingerprint(self.inference_net)

    @property
    def denoising_task(self) -> str | None:
        """Identifies the denoising task, see ``LatentDDPMModule``; None if the model does not denoise."""
        return None

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """The networks that ``trainer.compile`` compiles for training steps."""
        return []

    @property
    def features_trained_with(self) -> str | None:
        """The pretrained networks whose features the training losses used: ``EfficientNet-Lite0``, ``VGG-16``, or both joined
        by "and". A metric in these features overrates the model. None if there are none.
        """
        return None

    def on_device(self, device: torch.device) -> Self:
        """Move the model to a device; unlike ``to``, cheap if it is already there."""
        return self if self.device == device else self.to(device)

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """The metrics to log, from the mean scores of a set."""
        return means

    @property
    def eligible_as_best(self) -> bool:
        """Whether this epoch's weights may become best.ckpt."""
        return True

    # -- optimiser steps

    @property
    def accumulation_steps(self) -> int:
        """Number of batches in an optimiser step."""
        return self.trainer.accumulate_grad_batches

    def draw_for_step(
        self, draw: Callable[..., Tensor], num: int, shape: Sequence[int], batch_idx: int, purpose: str
    ) -> Tensor:
        """Draw for the whole optimiser step, and return the rows of this device and batch.

        Args:
            draw: ``normal``, ``uniform`` or ``stratified`` of ``randomness``.
            num: number of pictures in this batch.
            shape: shape of one row.
            batch_idx: number of the batch within the epoch.
            purpose: see ``randomness.generator``.

        Returns:
            (num, *shape); a picture gets the same numbers whatever the number of devices and accumulated batches.
        """
        devices = self.trainer.world_size
        first = ((batch_idx % self.accumulation_steps) * devices + self.global_rank) * num
        whole = (num * devices * self.accumulation_steps, *shape)
        rows = draw(whole, seed=self.seed, step=self.optimizer_steps, purpose=purpose, device=self.device)
        return rows if num == len(rows) else rows[first : first + num].clone()  # a view would keep all of them in memory

    def setup(self, stage: str) -> None:
        """Reset ``run_state`` for ``fit``, so that nothing remains of an earlier one."""
        if stage == "fit":
            self.run_state = RunState()

    def on_train_start(self) -> None:
        """Set the horizon of the schedules, which is longer for a run that is extended; report if the noise has changed."""
        noise = noise_of(self.device)
        if self._earlier_noise not in (None, noise) and self.trainer.is_global_zero:
            log.info(
                f"training noise was drawn on the {self._earlier_noise} until now and is drawn on the {noise} from here on: "
                "the result will not be bit-equal to that of an uninterrupted run"
            )
        batches = self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        self.total_steps = int(batches) // self.accumulation_steps

    def check_total_steps(self) -> None:
        """Check that the run is long enough for the model's settings. Most models have no such condition.

        Raises:
            UserError: the run is too short.
        """

    def to_steps(self, steps: float) -> int:
        """Convert a number of optimiser steps or, below 1, a fraction of the run, to steps.

        A fraction that has passed keeps its value, so that a run that is extended does not return to its warm-up.
        """
        if steps in self._passed_fractions:
            return self._passed_fractions[steps]
        num = num_steps(steps, self.total_steps)
        if 0 < steps < 1 and self.total_steps and self.optimizer_steps >= num:
            self._passed_fractions[steps] = num
        return num

    def set_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the scheduled learning rate of this optimiser step."""
        factor = lr_factor(self.lr_schedule, self.optimizer_steps, self.to_steps(self.lr_warmup_steps), self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor

    def build_optimizer(self, make: MakeOptimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build an optimiser, a fused one if it exists and the config does not choose another kind.

        Not with 16-mixed, where gradients of a fused optimiser would be clipped before they are unscaled.
        """
        chosen = {"fused", "foreach", "differentiable"} & set(getattr(make, "keywords", {}))
        settled = "fused" not in signature(make).parameters or chosen
        if settled or self.device.type not in FUSED_ON or precision_of(self) == "16-mixed":
            return make(parameters)
        return make(parameters, fused=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, but also for fused optimisers with bf16-mixed, which Lightning refuses unnecessarily."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.trainer.precision != "bf16-mixed" or not optimizer.defaults.get("fused"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    # -- losses and gradients that are not finite

    def stop_if_not_finite(self, check_weights: bool = False) -> None:
        """Stop before weights that may not be finite are used. Every process must call it.

        Args:
            check_weights: also check the weights, before a checkpoint is written.

        Raises:
            NotFinite: a loss term or a gradient since the last call, or a weight, is not finite.
        """
        if check_weights:
            norm = get_total_norm([p.detach() for p in self.parameters()])
            self.finite_watch.check(["weights"], norm[None], self.optimizer_steps)
        nonfinite = self.finite_watch.first_nonfinite()
        if nonfinite is not None:
            step, names = nonfinite
            raise NotFinite(
                f"optimiser step {step:,}: {' and '.join(names)} is not finite: lower the learning rate, clip with "
                "trainer.gradient_clip_val=1, or skip such steps with trainer.on_nonfinite=skip"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """With ``on_nonfinite=skip``, keep the buffers that a forward pass changes, such as the statistics of BatchNorm."""
        if self.on_nonfinite == "skip" and batch_idx % self.accumulation_steps == 0:
            self._buffers_before = {name: buffer.clone() for name, buffer in self.named_buffers()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Check the gradients, which are unscaled and not yet clipped; stop, or discard them, if they are not finite."""
        if self.trainer.precision != "16-mixed":  # its gradient scaler checks them and skips steps itself
            groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]  # both step, or none
            grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            if grads:
                self.finite_watch.check(["gradient"], get_total_norm(grads)[None], self.optimizer_steps + 1)
        if self.on_nonfinite == "skip":
            self._skip_if_not_finite()
            if self.skips_step:
                optimizer.zero_grad()
                for name, buffer in self.named_buffers():
                    buffer.copy_(self._buffers_before[name])
        elif self.trainer.world_size == 1 and self.device.type == "cpu":  # elsewhere the check would wait for the device
            self.stop_if_not_finite()

    def _skip_if_not_finite(self) -> bool:
        nonfinite = self.finite_watch.first_nonfinite()
        if nonfinite is None:
            return False
        step, names = nonfinite[0], " and ".join(nonfinite[1])
        if not self.skips_step:
            self.skips_step = True
            self._consecutive_skips += 1
            if self.trainer.is_global_zero:
                log.warning(f"optimiser step {step:,}: {names} is not finite: step skipped")
        if self._consecutive_skips == MAX_SKIPPED:
            raise NotFinite(
                f"optimiser step {step:,}: {names} is not finite, the {MAX_SKIPPED}th step in a row: "
                "lower the learning rate, or clip with trainer.gradient_clip_val=1"
            )
        return True

    # -- bookkeeping

    def record(self, terms: dict[str, Tensor]) -> None:
        """Check the loss terms of a training batch and add them to the means.

        Args:
            terms: by name, each (N,), or a scalar that holds for each of the batch's N pictures.
        """
        names, (sums, num) = list(terms), batch_sums(terms)
        self.finite_watch.check(names, sums, self.optimizer_steps + 1)
        if self.on_nonfinite == "skip" and self._skip_if_not_finite():
            return
        self.epoch_means.add(names, sums, num)
        self.recent_means.add(names, sums, num)

    def count_step(self, values: dict[str, float]) -> None:
        """Count an optimiser step, and log the means since the last time if logging is due.

        Args:
            values: other values to log, such as the learning rate.
        """
        self.optimizer_steps += 1
        if not self.skips_step:
            self._consecutive_skips = 0
        self.skips_step = False
        if self.optimizer_steps % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.stop_if_not_finite()
            means = self.recent_means.compute()
            self.recent_means.reset()
            self._log({f"train/{name}": value for name, value in (means | values).items()})

    def on_validation_epoch_end(self) -> None:
        """Provide the scores to the loggers, and to callbacks that monitor them."""
        means = self.summarise(self.val_means.compute())
        self.val_means.reset()
        prefix = "val" if self.trainer.datamodule.held_out else "trainset"  # type: ignore[attr-defined]
        self.val_metrics = {f"{prefix}/{name}": value for name, value in means.items()}
        self.log_dict(self.val_metrics, logger=False)

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch and the results of its validation in one row."""
        means = {f"train_epoch/{name}": value for name, value in self.epoch_means.compute().items()}
        self.epoch_metrics = means | self.val_metrics
        self._log(self.epoch_metrics)
        self.log_dict(means, logger=False)
        self.epoch_means.reset()
        self.val_metrics = {}

    def _log(self, metrics: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch + 1, **metrics}, step=self.optimizer_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add our own step count and the running means."""
        checkpoint.setdefault("flowergen", {}).update(
            optimizer_steps=self.optimizer_steps,
            epoch_means=self.epoch_means.state_dict(),
            recent_means=self.recent_means.state_dict(),
            passed_shares=dict(self._passed_fractions),
            noise=noise_of(self.device),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore counts and running means."""
        state = checkpoint["flowergen"]
        self.optimizer_steps = state["optimizer_steps"]
        self._passed_fractions = dict(state.get("passed_shares", {}))  # absent in older checkpoints
        self._earlier_noise = state.get("noise", "cpu")  # older checkpoints were trained with the CPU's noise
        self.epoch_means.load_state_dict(state["epoch_means"], self.device)
        self.recent_means.load_state_dict(state["recent_means"], self.device)
