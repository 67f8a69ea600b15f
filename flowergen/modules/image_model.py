"""What every model is to the rest of the house, and the bookkeeping that all of them share."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.finite_watch import FiniteWatch, NotFinite
from flowergen.modules.lr_schedule import LrSchedule, lr_factor, num_steps
from flowergen.modules.running_means import RunningMeans, batch_sums
from flowergen.nn.posterior import Posterior
from flowergen.randomness import noise_of

log = logging.getLogger(__name__)

MakeOptimizer = Callable[..., torch.optim.Optimizer]  # from the parameters
FUSED_ON = ("cuda",)  # kinds of device
MOST_SKIPPED = 20  # steps in a row: what has diverged does not come back


class ImageModel(LightningModule, ABC):
    """A model of pictures in [0, 1], with latents (N, C, h, w).

    Counts its own optimiser steps, because Lightning's ``global_step`` counts something else where there are two
    optimisers; logs means over pictures at that count, straight to the loggers, so that they are on disk before a
    checkpoint is; and keeps both in the checkpoint.

    Args:
        image_size: side S of the pictures, in px.
        seed: of its noise.
        lr_schedule, lr_warmup_steps: see ``lr_factor``; of all optimisers. As all numbers of steps of a model,
            ``lr_warmup_steps`` may be a share below 1 of the run's steps.
    """

    best_metric: ClassVar[str]  # of the validation metrics, chooses best.ckpt
    best_mode: ClassVar[Literal["min", "max"]]
    denoises: ClassVar[bool] = False  # a diffusion model, whose samples are of a class where there are classes
    decoder_steps: int | None = None  # that ``DecoderModule`` has trained the decoder for; None for the autoencoder's own
    on_nonfinite: Literal["stop", "skip"] = "stop"  # trainer.on_nonfinite

    def __init__(self, image_size: int, seed: int, lr_schedule: LrSchedule = "constant", lr_warmup_steps: float = 0):
        super().__init__()
        self.image_size, self.seed = image_size, seed
        self.lr_schedule, self.lr_warmup_steps = lr_schedule, lr_warmup_steps
        self.optimizer_steps = 0
        self.total_steps = 0  # of the run; 0 where nothing trains, and a share of it is over at once
        self._passed_shares: dict[float, int] = {}  # in steps
        self._noise_before: str | None = None  # see ``noise_of``: of the run that is resumed
        self.epoch_means, self.recent_means, self.val_means = RunningMeans(), RunningMeans(), RunningMeans()
        self.val_metrics: dict[str, float] = {}
        self.epoch_metrics: dict[str, float] = {}  # of the last epoch, with its validation if it had one
        self.finite_watch = FiniteWatch()
        self.skips_step = False  # this optimiser step
        self._skipped_in_a_row = 0
        self._buffers_before: dict[str, Tensor] = {}

    # -- what a model offers

    @property
    @abstractmethod
    def inference_net(self) -> nn.Module:
        """The network that encodes, decodes and samples: the averaged one where there is one."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""

    @abstractmethod
    def encode(self, x: Tensor) -> Posterior:
        """(N, 3, S, S) in [0, 1] -> q(z|x), mean and logvar (N, C, h, w)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, S, S) in [0, 1]."""

    @abstractmethod
    def summary(self) -> str:
        """One line: what the network is."""

    @property
    def autoencoder(self) -> "ImageModel | None":
        """What encodes pictures and decodes latents: the model itself, or the one that it was trained on; None on pixels."""
        return self

    @property
    def sampling_model(self) -> "ImageModel":
        """The model that samples are drawn from: this one, or the one whose decoder it trains."""
        return self

    @property
    def latents_owner(self) -> str:
        """The fingerprint of the network whose latents these are."""
        return fingerprint(self.inference_net)

    @property
    def denoising_task(self) -> str | None:
        """Identifies the denoising task, see ``LatentDDPMModule``; None of a model that does not denoise."""
        return None

    @property
    def networks_to_compile(self) -> list[nn.Module]:
        """What a training step calls, for ``trainer.compile``; empty for a model that has nothing to compile."""
        return []

    @property
    def features_trained_with(self) -> str | None:
        """The network from outside whose features were in the training losses, ``EfficientNet-Lite0`` or ``VGG-16``, or both
        joined by "and": such a network judges the model too well. None where there is none.
        """
        return None

    def on(self, device: torch.device) -> Self:
        """The model on a device; cheap where it is there already, unlike ``to``, which asks every parameter."""
        return self if self.device == device else self.to(device)

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """What is logged of a set's mean scores."""
        return means

    @property
    def may_be_best(self) -> bool:
        """Whether this epoch's weights may become best.ckpt."""
        return True

    # -- optimiser steps

    @property
    def accumulation_steps(self) -> int:
        """How many batches make an optimiser step."""
        return self.trainer.accumulate_grad_batches

    def step_draw(self, draw: Callable[..., Tensor], num: int, shape: Sequence[int], batch_idx: int, purpose: str) -> Tensor:
        """This device's rows of what is drawn for the whole optimiser step.

        Args:
            draw: ``randomness.normal`` or ``randomness.uniform``.
            num: pictures in this batch.
            shape: of one row.
            batch_idx: within the epoch.
            purpose: see ``randomness.generator``.

        Returns:
            (num, *shape): the same numbers meet the same picture whatever the number of devices and of accumulated parts.
        """
        devices = self.trainer.world_size
        first = ((batch_idx % self.accumulation_steps) * devices + self.global_rank) * num
        whole = (num * devices * self.accumulation_steps, *shape)
        rows = draw(whole, seed=self.seed, step=self.optimizer_steps, purpose=purpose, device=self.device)
        return rows[first : first + num]

    def on_train_start(self) -> None:
        """The schedule's horizon: a resumed run with more epochs has a longer one. And whether its noise is another now."""
        noise = noise_of(self.device)
        if self._noise_before not in (None, noise) and self.trainer.is_global_zero:
            log.info(
                f"training noise was drawn on the {self._noise_before} until now and is drawn on the {noise} from here on: "
                "the result will not be bit-equal to that of an uninterrupted run"
            )
        batches = self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        self.total_steps = int(batches) // self.accumulation_steps

    def check_total_steps(self) -> None:
        """Whether ``total_steps`` are enough for what the model is told to do; nothing to say of most models.

        Raises:
            UserError: they are not.
        """

    def in_steps(self, steps: float) -> int:
        """Optimiser steps, of a number of them or, below 1, a share of the run's.

        A share that has passed stays where it was: a run that is extended does not go back to its warm-up.
        """
        if steps in self._passed_shares:
            return self._passed_shares[steps]
        found = num_steps(steps, self.total_steps)
        if 0 < steps < 1 and self.total_steps and self.optimizer_steps >= found:
            self._passed_shares[steps] = found
        return found

    def set_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """The scheduled one of this optimiser step."""
        factor = lr_factor(self.lr_schedule, self.optimizer_steps, self.in_steps(self.lr_warmup_steps), self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor

    def build_optimizer(self, make: MakeOptimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser; on a GPU with one kernel for all parameters if it has one, unless the config says ``fused``.

        Not under 16-mixed, where a fused step would see gradients that were clipped before they were unscaled.
        """
        settled = "fused" not in signature(make).parameters or "fused" in getattr(make, "keywords", {})
        if settled or self.device.type not in FUSED_ON or self.trainer.precision == "16-mixed":
            return make(parameters)
        return make(parameters, fused=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, which refuses fused optimisers under bf16-mixed too, where nothing is in the way."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    # -- losses and gradients that are not finite

    def stop_if_not_finite(self, look_at_weights: bool = False) -> None:
        """Before what has been trained is relied on. Every process must call it.

        Args:
            look_at_weights: too: they are what a checkpoint holds.

        Raises:
            NotFinite: since the last call, a loss term or a gradient was not finite.
        """
        if look_at_weights:
            norm = get_total_norm([p.detach() for p in self.parameters()])
            self.finite_watch.look(["weights"], norm[None], self.optimizer_steps)
        found = self.finite_watch.found()
        if found is not None:
            step, names = found
            raise NotFinite(
                f"optimiser step {step:,}: {' and '.join(names)} is not finite: lower the learning rate, clip with "
                "trainer.gradient_clip_val=1, or leave such steps out with trainer.on_nonfinite=skip"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Where steps are skipped: keep what a forward pass changes, such as the statistics of BatchNorm."""
        if self.on_nonfinite == "skip" and batch_idx % self.accumulation_steps == 0:
            self._buffers_before = {name: buffer.clone() for name, buffer in self.named_buffers()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradients, unscaled and not yet clipped; then stop, or drop them, which leaves the step out."""
        if self.trainer.precision != "16-mixed":  # whose scaler looks at them, and skips by itself
            groups = [group for each in self.trainer.optimizers for group in each.param_groups]  # both optimisers step, or none
            grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            if grads:
                self.finite_watch.look(["gradient"], get_total_norm(grads)[None], self.optimizer_steps + 1)
        if self.on_nonfinite == "skip":
            self._skip_if_not_finite()
            if self.skips_step:
                optimizer.zero_grad()
                for name, buffer in self.named_buffers():
                    buffer.copy_(self._buffers_before[name])
        elif self.trainer.world_size == 1 and self.device.type == "cpu":  # elsewhere it would be waited for
            self.stop_if_not_finite()

    def _skip_if_not_finite(self) -> bool:
        found = self.finite_watch.found()
        if found is None:
            return False
        if not self.skips_step:
            self.skips_step = True
            self._skipped_in_a_row += 1
            if self.trainer.is_global_zero:
                log.warning(f"optimiser step {found[0]:,}: {' and '.join(found[1])} is not finite: left out")
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise NotFinite(
                f"optimiser step {found[0]:,}: {' and '.join(found[1])} is not finite, the {MOST_SKIPPED}th step in a row: "
                "lower the learning rate, or clip with trainer.gradient_clip_val=1"
            )
        return True

    # -- bookkeeping

    def record(self, terms: dict[str, Tensor]) -> None:
        """A training batch is done: watch its loss terms, and add them to the means.

        Args:
            terms: by name, each (N,), or a scalar that holds for each of the batch's N pictures.
        """
        names, (sums, num) = list(terms), batch_sums(terms)
        self.finite_watch.look(names, sums, self.optimizer_steps + 1)
        if self.on_nonfinite == "skip" and self._skip_if_not_finite():
            return
        self.epoch_means.add(names, sums, num)
        self.recent_means.add(names, sums, num)

    def count_step(self, values: dict[str, float]) -> None:
        """An optimiser step is done; log the means since the last time if it is due.

        Args:
            values: to log beside them, such as the learning rate.
        """
        self.optimizer_steps += 1
        if not self.skips_step:
            self._skipped_in_a_row = 0
        self.skips_step = False
        if self.optimizer_steps % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.stop_if_not_finite()
            means = self.recent_means.compute()
            self.recent_means.reset()
            self._log({f"train/{name}": value for name, value in (means | values).items()})

    def on_validation_epoch_end(self) -> None:
        """The scores for the loggers, and for callbacks that monitor them."""
        means = self.summarise(self.val_means.compute())
        self.val_means.reset()
        prefix = "val" if self.trainer.datamodule.held_out else "trainset"  # type: ignore[attr-defined]
        self.val_metrics = {f"{prefix}/{name}": value for name, value in means.items()}
        self.log_dict(self.val_metrics, logger=False)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's averages and what validation found, in one row."""
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
        """Add what Lightning does not know: our own step and the running means."""
        checkpoint.setdefault("flowergen", {}).update(
            optimizer_steps=self.optimizer_steps,
            epoch_means=self.epoch_means.state_dict(),
            recent_means=self.recent_means.state_dict(),
            passed_shares=dict(self._passed_shares),
            noise=noise_of(self.device),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore counts and running means."""
        state = checkpoint["flowergen"]
        self.optimizer_steps = state["optimizer_steps"]
        self._passed_shares = dict(state.get("passed_shares", {}))  # not in checkpoints from before there were shares
        self._noise_before = state.get("noise", "cpu")  # where all of it was drawn before it could be on a GPU
        self.epoch_means.load_state_dict(state["epoch_means"], self.device)
        self.recent_means.load_state_dict(state["recent_means"], self.device)
