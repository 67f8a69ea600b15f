"""Manual optimisation of a generator and a discriminator."""

from abc import abstractmethod
from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer

from flowergen.modules.image_model import ImageModel, MakeOptimizer
from flowergen.modules.lr_schedule import LrSchedule
from flowergen.picture_shape import ImageSize


class TwoOptimizers(ImageModel):
    """A model with manual optimisation, which Lightning requires for several optimisers.

    Args:
        image_size, seed, lr_schedule, lr_warmup_steps, image_channels: see ``ImageModel``.
        optimizer, discriminator_optimizer: build the optimisers from the parameters.
        accumulate_grad_batches, gradient_clip_val, gradient_clip_algorithm: the trainer's settings, which it does not apply in
            manual optimisation.
    """

    def __init__(
        self,
        image_size: ImageSize,
        seed: int,
        lr_schedule: LrSchedule,
        lr_warmup_steps: float,
        optimizer: MakeOptimizer,
        discriminator_optimizer: MakeOptimizer,
        accumulate_grad_batches: int,
        gradient_clip_val: float | None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        image_channels: int = 3,
    ):
        super().__init__(image_size, seed, lr_schedule, lr_warmup_steps, image_channels)
        self.automatic_optimization = False
        self.make_optimizer, self.make_discriminator_optimizer = optimizer, discriminator_optimizer
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm

    @property
    @abstractmethod
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters of the discriminator; if empty, there is one optimiser."""

    @property
    def accumulation_steps(self) -> int:
        """Number of batches in an optimiser step."""
        return self.accumulate_grad_batches

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser of everything but the discriminator, then the discriminator's if there is one."""
        discriminator = self.discriminator_parameters
        others = set(discriminator)
        generator = [p for p in self.parameters() if p.requires_grad and p not in others]
        optimizers = [self.build_optimizer(self.make_optimizer, generator)]
        if discriminator:
            optimizers.append(self.build_optimizer(self.make_discriminator_optimizer, discriminator))
        return optimizers

    def list_optimizers(self) -> list[Any]:
        """The optimisers as a list, also if there is only one."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def step_optimizers(self) -> float:
        """Step each optimiser at the scheduled learning rate, and return the generator's."""
        optimizers = self.list_optimizers()
        for optimizer in optimizers:
            self.set_learning_rate(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return float(optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check the gradients and clip them; they are unscaled here with 16-mixed too."""
        super().on_before_optimizer_step(optimizer)
        if self.gradient_clip_val is not None:
            self.configure_gradient_clipping(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)
