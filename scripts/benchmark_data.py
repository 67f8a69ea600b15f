"""Benchmark data loading, the training loop and the start of the train command; the hardware is printed with the results.

    python scripts/benchmark_data.py photos=DIR        a folder with class folders of full-size photographs
    python scripts/benchmark_data.py photos=DIR repeats=5 size=64 batch_size=64

It prints the median over the repeats and the range of:

1. pictures/s over the same files: a torchvision ImageFolder + DataLoader loop (decode, resize, crop, to tensor, every epoch),
   flowergen's loader after the first epoch, and flowergen's with data.decode=stream;
2. images/s of training: the bare model step on tensors in memory; a bare loop over flowergen's batches; Lightning's loop with
   flowergen's callbacks and loggers. The arms alternate, so that a drift of the machine's speed affects all of them equally;
3. seconds from the command to the end of the first training step, and the peak memory of that process.
"""

import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.data.order import TrainingOrder
from flowergen.data.streaming import PrefetchingLoader
from flowergen.modules.vae import VAEModule
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer


def settings() -> dict[str, str]:
    """Return the defaults, overridden by the key=value arguments."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    defaults = {"photos": "", "size": "64", "batch_size": "64", "repeats": "5", "num_images": "2000"}
    if not given.get("photos") or given.keys() - defaults.keys():
        sys.exit(__doc__)
    return defaults | given


def seconds(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: list[float], digits: int = 0) -> str:
    """Format the median and the range."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(of: list[float], to: list[float]) -> str:
    """Format the median and the range of the ratios of each round."""
    return spread([a / b for a, b in zip(of, to, strict=True)], 3)


def compare_loading(photos: str, size: int, batch_size: int, repeats: int, cache_dir: str) -> None:
    """Print part 1, data loading."""
    folder = ImageFolder(
        photos,
        transforms.Compose([transforms.Resize(size, antialias=True), transforms.CenterCrop(size), transforms.ToTensor()]),
    )
    theirs = DataLoader(folder, batch_size=batch_size, shuffle=True, num_workers=os.cpu_count() or 1)
    config = composed(
        "data=image_folder", f"data.root={photos}", f"data.image_size={size}", "data.batch_size=1", cache_dir=cache_dir
    )
    data = build_datamodule(config)
    first = seconds(data.setup)
    order = TrainingOrder(data.rows["train"], batch_size, 0)
    ours = DataLoader(data.pictures, sampler=order, batch_size=None)
    streaming = build_datamodule({"data": config["data"] | {"decode": "stream"}})
    streaming.setup()
    streamed = PrefetchingLoader(streaming.pictures, sampler=order, batch_size=None)

    def epoch(loader: DataLoader) -> float:
        num = 0
        start = time.perf_counter()
        for batch in loader:
            image = batch[0].float().div(255) if batch[0].dtype == torch.uint8 else batch[0]
            num += len(image)
        return num / (time.perf_counter() - start)

    their_rates, our_rates, streamed_rates = [], [], []
    for _ in range(repeats):
        their_rates.append(epoch(theirs))
        our_rates.append(epoch(ours))
        streamed_rates.append(epoch(streamed))
    print(f"\nloading {len(folder)} photographs to {size} px, pictures/s")
    print(f"  ImageFolder + DataLoader, {os.cpu_count()} workers   {spread(their_rates)}")
    print(f"  ours, after the first epoch           {spread(our_rates)}")
    print(f"  ours, data.decode=stream              {spread(streamed_rates)}")
    print(f"  ratio                                 {ratio(our_rates, their_rates)}")
    print(f"  ratio of data.decode=stream           {ratio(streamed_rates, their_rates)}")
    print(f"  the first epoch's decoding took {first:.1f} s, {len(folder) / first:,.0f} pictures/s")


def composed(*overrides: str, cache_dir: str) -> dict[str, Any]:
    """Return a checked config, as ``train`` composes it."""
    cfg, _ = checked([*overrides, f"paths.cache_dir={cache_dir}"])
    return resolve(cfg)


def compare_training(size: int, batch_size: int, repeats: int, num_images: int, cache_dir: str) -> None:
    """Print part 2, training."""
    config = composed(
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        f"data.num_images={num_images}",
        f"data.image_size={size}",
        f"data.batch_size={batch_size}",
        cache_dir=cache_dir,
    )
    data = build_datamodule(config)
    data.setup()
    rates: dict[str, list[float]] = {"model step in memory": [], "bare loop": [], "Lightning": []}
    num_batches = len(data.rows["train"]) // batch_size
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(repeats + 1):  # the first round is a warm-up
            order = TrainingOrder(data.rows["train"], batch_size, 0)
            order.set_epoch(round_)
            for name in rates:
                rate = num_batches * batch_size / one_epoch(name, config, data, order, folder)
                if round_:
                    rates[name].append(rate)
    print(f"\ntraining, vae at {size} px, batches of {batch_size}, {num_batches} batches an epoch, images/s")
    for name, values in rates.items():
        print(f"  {name:<22} {spread(values)}")
    print(f"  our epoch / model step in memory  {ratio(rates['Lightning'], rates['model step in memory'])}")
    print(f"  Lightning / bare loop             {ratio(rates['Lightning'], rates['bare loop'])}")


def one_epoch(name: str, config: dict[str, Any], data: ImageDataModule, order: TrainingOrder, folder: str) -> float:
    """Return the seconds of one epoch of one arm, without its setup."""
    module = cast(VAEModule, build_module(config, num_classes=0))
    if name == "Lightning":
        stopwatch = Stopwatch()
        trainer = build_trainer(config, RunFolder(tempfile.mkdtemp(dir=folder)), None)
        trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
        return stopwatch.seconds

    optimizer = module.configure_optimizers()
    module.train()
    loader = DataLoader(data.pictures, sampler=order, batch_size=None)
    fixed = next(iter(loader)).image.float().div(255)

    def step(x: torch.Tensor, noise: torch.Tensor) -> None:
        posterior = module._encode(module.net, x)
        z = posterior.sample(noise)
        terms = module.objective(x, posterior, z, module._decode(module.net, z), noise)
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        optimizer.step()

    def run() -> None:
        noise = torch.randn(len(fixed), config["model"]["latent_dim"], 1, 1)
        for _ in range(len(order)):
            step(fixed, noise)

    def loop() -> None:
        for batch in loader:
            x = batch.image.float().div(255)
            flip = torch.rand(len(x)) < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
            step(x, torch.randn(len(x), config["model"]["latent_dim"], 1, 1))

    return seconds(run if name == "model step in memory" else loop)


class Stopwatch(Callback):
    """Measures the seconds from the start of the epoch's first batch to the end of its last."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the stopwatch."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Store the time after every batch, because validation and pictures follow the last one."""
        self.seconds = time.perf_counter() - self.started


FIRST_STEP = """
import os, resource, sys
from flowergen.modules.vae import VAEModule
from flowergen.train import main
def stop(self, values):
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
    os._exit(0)
VAEModule.count_step = stop
main()
"""


def time_the_command(repeats: int, cache_dir: str) -> None:
    """Print part 3; the process exits after its first optimiser step."""
    until_step, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats + 1):  # the first run decodes the pictures
            arguments = ["experiment=quickstart", f"paths.cache_dir={cache_dir}", f"hydra.run.dir={folder}/{number}"]
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", FIRST_STEP, *arguments], check=True, capture_output=True, text=True)
            if number:
                until_step.append(time.perf_counter() - start)
                peaks.append(int(done.stdout.split()[-1]) / 1024)
    print("\nfrom the command, its pictures cached, to the end of its first training step")
    print(f"  seconds                {spread(until_step, 1)}")
    print(f"  peak memory, MiB       {spread(peaks)}")


def hardware() -> str:
    """Describe the hardware in one line."""
    cpu = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    name = cpu[0] if cpu else platform.processor()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


def main() -> None:
    """Run all benchmarks and print the results."""
    given = settings()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    size, batch_size, repeats = int(given["size"]), int(given["batch_size"]), int(given["repeats"])
    print(hardware())
    with tempfile.TemporaryDirectory() as cache_dir:
        compare_loading(given["photos"], size, batch_size, repeats, cache_dir)
        compare_training(size, batch_size, repeats, int(given["num_images"]), cache_dir)
        time_the_command(repeats, cache_dir)


if __name__ == "__main__":
    main()
