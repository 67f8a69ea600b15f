"""Measure the overhead of a training step: noise, batches, callbacks, logging, averages and Lightning's loop.

    python scripts/benchmark_overhead.py
    python scripts/benchmark_overhead.py families=latent_ddpm batch_size=256 steps=200 rounds=5

Each family is trained with everything that `flowergen.train` builds, on random pictures of 64 px or random latents of
4 x 16 x 16, with networks of negligible cost: the diffusion model's multiplies by one number. Validation is off.
It prints the median over the rounds and the range, in microseconds for one training step after the first ten, of:

1. the whole step, without a profiler;
2. its parts, from a second training run with a profiler, whose own time (about 2 microseconds a part) is included;
3. the overhead: the sum of these without the model's forward pass, losses, backward pass and optimiser;
4. that without noise and the batch's rows and arithmetic either: a GPU computes them asynchronously, on pictures or latents
   that lie in its memory.
"""

import hashlib
import logging
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmark_data import hardware, spread
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn

from flowergen.app.command import one_line_errors
from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.listing import Listing
from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.runs.build import build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer

SIZE = 64
WARM_UP = 10  # steps that are not measured
FAMILIES = {
    "vae": ["model=vae", "model.channels=[4,4,4]", "model.latent_dim=4", "model.ema_decay=0.999"],
    "vae_gan": [
        *("model=vae_gan", "model.blocks.channels=[4,4]", "model.blocks.num_blocks=[0,1]", "model.blocks.self_attention=false"),
        *("model.perceptual=discriminator", "model.discriminator.kind=patch", "model.discriminator.channels=4"),
        *("model.adversarial_start_steps=0", "model.adversarial_ramp_steps=0", "model.ema_decay=0.999"),
    ],
    "latent_ddpm": ["model=latent_ddpm", "autoencoder=none", "model.ema_decay=0.999", "trainer.gradient_clip_val=1"],
}
# row of the table -> substrings of the profiler's action names; the first match is used
PARTS = {
    "forward and losses": ["training_step"],
    "backward": ["backward"],
    "optimiser": ["optimiser"],
    "noise": ["noise"],
    "batch: rows": ["[_TrainingEpochLoop].train_dataloader_next"],
    "batch: arithmetic": ["on_after_batch_transfer"],
    "batch: to the device": ["batch_to_device"],
    "running means, finite watch": ["record", "on_before_optimizer_step"],
    "gradient clipping": ["configure_gradient_clipping"],
    "moving average": ["moving average"],
    "counting and logging": ["count_step"],
}
MODEL = ("forward and losses", "backward", "optimiser")
ON_DEVICE = ("noise", "batch: rows", "batch: arithmetic")


class RandomPictures(ImageDataModule):
    """Random noise as pictures, enough for all steps."""

    num: int

    def listing(self) -> Listing:
        """List the pictures, in 102 classes."""

        def read(index: int) -> tuple[np.ndarray, str]:
            rng = np.random.default_rng(index)
            return rng.integers(0, 256, (*self.picture_shape[1:], 3), np.uint8), f"{index:06d}"

        return Listing(
            names=tuple(f"{index:06d}" for index in range(self.num)),
            labels=np.arange(self.num) % 102,
            class_names=tuple(f"class {index}" for index in range(102)),
            subsets=None,
            fingerprint=hashlib.sha256(f"{self.num}".encode()).hexdigest(),
            read=read,
        )


class Scale(nn.Module):
    """A denoiser with a single parameter."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return self.scale * x


class Seconds(Profiler):
    """Sums seconds by action name, excluding nested actions."""

    def __init__(self) -> None:
        super().__init__()
        self.total: dict[str, float] = defaultdict(float)
        self._running: list[tuple[str, float, float]] = []  # name, start, seconds of nested actions

    def start(self, action_name: str) -> None:
        """Start an action, by Lightning's name."""
        self._running.append((action_name, time.perf_counter(), 0.0))

    def stop(self, action_name: str) -> None:
        """Stop the innermost action."""
        name, start, within = self._running.pop()
        taken = time.perf_counter() - start
        self.total[name] += taken - within
        if self._running:
            outer, began, others = self._running.pop()
            self._running.append((outer, began, others + taken))

    def timed(self, owner: Any, method: str, name: str) -> None:
        """Wrap a method of an object so that its calls are measured."""
        function: Callable[..., Any] = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.profile(name):
                return function(*args, **kwargs)

        setattr(owner, method, measured)


class WholeStep(Callback):
    """Measures the seconds from the first batch after the warm-up to the end of the last, and resets the profiler before."""

    def __init__(self, profiler: Seconds | None):
        self.profiler = profiler

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start after the warm-up."""
        if batch_idx == WARM_UP:
            self.started = time.perf_counter()
            if self.profiler:
                self.profiler.total.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the time after every batch, because the work at the end of the epoch follows the last one."""
        if batch_idx >= WARM_UP:
            self.seconds = time.perf_counter() - self.started
            self.by_name = dict(self.profiler.total) if self.profiler else {}


def train(config: dict[str, Any], data: ImageDataModule, autoencoder: ImageModel | None, profiler: Seconds | None) -> WholeStep:
    """Train for one epoch."""
    module: Any = build_module(config, len(data.class_names), autoencoder)
    whole = WholeStep(profiler)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, RunFolder(folder), None)
        trainer.callbacks.insert(0, whole)  # type: ignore[attr-defined]
        if profiler:
            trainer.profiler = profiler  # type: ignore[attr-defined]
            profiler.timed(module, "draw_for_step", "noise")
            profiler.timed(module, "record", "record")
            profiler.timed(module, "count_step", "count_step")
            profiler.timed(module.ema, "update", "moving average")
            make = module.configure_optimizers

            def configure() -> Any:
                found = make()
                for optimizer in found if isinstance(found, list) else [found]:
                    profiler.timed(optimizer, "step", "optimiser")
                return found

            module.configure_optimizers = configure
        trainer.fit(module, datamodule=data)
    return whole


def row_of(action: str) -> str:
    """Return the row of the table that a profiled action belongs to."""
    if action.startswith("[Callback]"):
        return f"callback {action.removeprefix('[Callback]').partition('{')[0].partition('.')[0]}"
    for row, names in PARTS.items():
        if any(name in action for name in names):
            return row
    return "Lightning's loop and the rest"


def measure(family: str, batch_size: int, steps: int, rounds: int) -> None:
    """Measure a family and print its table."""
    num_train = batch_size * (steps + WARM_UP)
    quick = ["trainer.max_epochs=1", "trainer.limit_val_batches=0", "callbacks.images=null", "trainer.precision=32-true"]
    quick.append(f"trainer.limit_train_batches={steps + WARM_UP}")
    quick += [f"data.batch_size={batch_size}", f"data.image_size={SIZE}"]
    config = resolve(checked([*quick, *FAMILIES[family]])[0])
    autoencoder = None
    if family == "latent_ddpm":
        config["model"]["network"] = {"_target_": "benchmark_overhead.Scale", "_partial_": True}
        autoencoder = build_module(resolve(checked([*quick, *FAMILIES["vae_gan"]])[0]), 0)  # for the shape of its latents
    wholes, tables = list[float](), list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as cache:
        options = {key: value for key, value in config["data"].items() if key in OPTIONS}
        data = RandomPictures(**options | {"name": "noise", "cache_dir": cache})
        data.num = int(num_train / 0.8) + 200
        data.setup()
        if autoencoder:
            mean = np.random.default_rng(0).standard_normal((data.num, 2, *autoencoder.latent_shape), np.float32)
            data.use_latents(mean, np.full_like(mean, -4.0))
        for _ in range(rounds):
            wholes.append(1e6 * train(config, data, autoencoder, None).seconds / steps)
            found = train(config, data, autoencoder, Seconds())
            table: dict[str, float] = defaultdict(float)
            for action, seconds in found.by_name.items():
                table[row_of(action)] += 1e6 * seconds / steps
            table["Lightning's loop and the rest"] += 1e6 * found.seconds / steps - sum(table.values())
            tables.append(table)
    print(f"\n{family}, batches of {batch_size}: microseconds a step")
    print(f"  {spread(wholes):>26}  the whole, without a profiler")
    names = [*PARTS, *sorted({name for table in tables for name in table} - set(PARTS))]
    for name in names:
        values = [table[name] for table in tables]
        if max(values) >= 0.5:
            print(f"  {spread(values):>26}  {name}")
    for left_out in (MODEL, MODEL + ON_DEVICE):
        rest = [sum(value for name, value in table.items() if name not in left_out) for table in tables]
        print(f"  {spread(rest):>26}  the sum without {', '.join(left_out)}")


OPTIONS = ("image_size", "batch_size", "split", "split_seed", "horizontal_flip", "on_corrupt", "seed", "device_resident")


def main() -> None:
    """Measure all families and print the results."""
    given = {"families": ",".join(FAMILIES), "batch_size": "256", "steps": "50", "rounds": "5"}
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key not in given or not value:
            raise UserError(f"{argument}: this command takes {', '.join(f'{name}=VALUE' for name in given)}")
        given[key] = value
    families = given["families"].split(",")
    if unknown := set(families) - set(FAMILIES):
        raise UserError(f"families={','.join(sorted(unknown))}: choose from {', '.join(FAMILIES)}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(hardware())
    for family in families:
        measure(family, int(given["batch_size"]), int(given["steps"]), int(given["rounds"]))


if __name__ == "__main__":
    one_line_errors(main)
