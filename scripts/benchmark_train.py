"""Benchmark a training step: its phases, memory formats, compilation and precisions.

    python scripts/benchmark_train.py model=vae_gan model.perceptual=discriminator     any override of flowergen.train
    python scripts/benchmark_train.py model=vae rounds=5 steps=20
    python scripts/benchmark_train.py model=vae_gan arms=eager,channels_last,compiled,bf16
    python scripts/benchmark_train.py model=latent_ddpm autoencoder=RUN                with and without the cache of latents

It prints the median over the rounds and the range of each value. The arms alternate within each round, so that a drift of the
machine's speed affects all of them equally:

1. images/s of each arm's bare step: the model's own methods on one batch in memory, no Lightning, no logging, no keyed noise;
2. images/s of Lightning with flowergen's callbacks and loggers, against the bare step in the config's memory format;
3. the share of each phase in a bare step, and FLOPs; on a GPU also the share of the peak;
4. peak memory.

Arms: eager (float32, NCHW), channels_last, compiled (and channels_last), bf16 (and channels_last), compiled_bf16 (and
channels_last), compiled_bf16_graphs (and launched as CUDA graphs, on a GPU); for latent diffusion no_cache (channels_last,
each batch encoded at each step), also under Lightning. TF32 is off in all arms. The adversarial loss is on from the first
step. The GPU part has not been run on a GPU.
"""

import logging
import resource
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from typing import Any, cast

import torch
from benchmark_data import Stopwatch, hardware, ratio, spread
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowergen.app.command import one_line_errors
from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.data.batch import Batch, LatentBatch
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.evaluation.encoding import cached_posteriors
from flowergen.losses.diff_augment import NUM_DRAWS
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.vae import VAEModule
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.runs.build import build_datamodule, build_module, fetch_weights
from flowergen.runs.loading import load_run
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer

PEAK_TFLOPS = {  # dense, from NVIDIA's data sheets: float32 without tensor cores, bf16 with them
    "H200": {"float32": 67.0, "bf16": 989.0},
    "H100": {"float32": 67.0, "bf16": 989.0},
    "A100": {"float32": 19.5, "bf16": 312.0},
    "RTX 4090": {"float32": 82.6, "bf16": 165.2},
}


class BareStep:
    """One optimiser step of a model without Lightning, timed by phase.

    Args:
        config: of the run.
        num_classes: of the data.
        batch: of pictures in [0, 1], or of latents, on the device.
        arm: see the module docstring.
        autoencoder: of latent diffusion.
    """

    def __init__(
        self, config: dict[str, Any], num_classes: int, batch: Batch | LatentBatch, arm: str, autoencoder: ImageModel | None
    ):
        self.batch, self.bf16, self.device = batch, "bf16" in arm, batch.label.device
        self.cuda_graphs = "graphs" in arm
        self.seconds: dict[str, float] = defaultdict(float)
        self.module: Any = build_module(config, num_classes, autoencoder).to(self.device).train()
        self.module.to(memory_format=torch.contiguous_format if arm == "eager" else torch.channels_last)
        optimizers: Any = self.module.configure_optimizers()
        self.optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self.module.manual_backward = self._backward  # type: ignore[method-assign]
        if "compiled" in arm:
            for part in self.module.networks_to_compile:
                part.compile(mode="reduce-overhead" if self.cuda_graphs else "default")

    def __call__(self) -> None:
        """Execute the step."""
        self.phases: list[tuple[str, str]] = []  # names of the phase before each backward pass, and of the pass
        self.started = time.perf_counter()
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if isinstance(self.module, VAEGANModule):
                self._adversarial(self.module, cast(Batch, self.batch))
            elif isinstance(self.module, LatentDDPMModule):
                self._denoiser(self.module)
            else:
                self._vae(self.module, cast(Batch, self.batch))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._lap("optimisers")
        if self.module.ema is not None:
            self.module.ema.update(self.module.net, 1000)
            self._lap("moving average")

    def _denoiser(self, module: LatentDDPMModule) -> None:
        posterior = module._posterior(self.batch)
        x0 = module.scaled(posterior.sample(torch.randn_like(posterior.mean)))
        self._lap("latents")
        t = module.schedule.times(torch.rand(len(x0), device=self.device))
        loss = module.losses(module.net, x0, torch.randn_like(x0), t, self.batch.label).mean()
        self._lap("forward and loss")
        self._backward(loss)

    def _vae(self, module: VAEModule, batch: Batch) -> None:
        x = batch.image
        posterior = module._encode(module.net, x)
        noise = torch.randn_like(posterior.mean)
        z = posterior.sample(noise)
        loss = module.objective(x, posterior, z, module._decode(module.net, z), noise)["loss"].mean()
        self._lap("forward and loss")
        self._backward(loss)

    def _adversarial(self, module: VAEGANModule, batch: Batch) -> None:
        x = 2 * batch.image - 1
        posterior = module.net.encoder(x)
        h = module.net.decoder.features(posterior.sample(torch.randn_like(posterior.mean)))
        x_hat = module.net.decoder.picture(h).float()
        self._lap("autoencoder, forward")
        if module.adversary is None:
            loss = module.objective(x, batch.label, posterior, x_hat, None)["loss"].mean()
            self._lap("generator, losses")
            self._backward(loss)
            return
        module.adversary.discriminator.update_spectral_norms()
        u = torch.rand(len(x), NUM_DRAWS, device=x.device)
        self.phases = [("discriminator, forward", "discriminator, backward"), ("generator, losses", "backward")]
        module._adversarial_step(module.adversary, x, batch.label, posterior, h, x_hat, u)
        module.adversary.update_adaptive_weight(world_size=1)
        self._lap("adaptive weight")

    def _backward(self, loss: Tensor, **options: Any) -> None:
        before, name = self.phases.pop(0) if self.phases else ("", "backward")
        if before:
            self._lap(before)
        loss.backward(**options)
        self._lap(name)

    def _lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self.started
        self.started = now


class SynchronisedStopwatch(Stopwatch):
    """A stopwatch that waits for the GPU."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Store the time after the GPU has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        super().on_train_batch_end(*args)


def lightning_seconds(config: dict[str, Any], data: ImageDataModule, autoencoder: ImageModel | None) -> float:
    """Return the seconds of an epoch of ``limit_train_batches`` steps."""
    module = build_module(config, len(data.class_names), autoencoder)
    with tempfile.TemporaryDirectory() as folder:
        trainer, stopwatch = build_trainer(config, RunFolder(folder), None), SynchronisedStopwatch()
        trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
    return stopwatch.seconds


def print_flops(step: BareStep, seconds: float, num_images: int) -> None:
    """Print the FLOPs of a bare step and, on a GPU, their share of the peak if it is known."""
    # eager: the replay of a CUDA graph has no operations to count
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    print(f"  {flops / num_images / 1e9:.2f} GFLOP a picture, {flops / seconds / 1e9:,.0f} GFLOP/s achieved")
    if step.device.type == "cuda":
        name, precision = torch.cuda.get_device_name(), "bf16" if step.bf16 else "float32"
        peaks = [peaks[precision] for known, peaks in PEAK_TFLOPS.items() if known in name]
        share = f"{flops / seconds / 1e12 / peaks[0]:.1%} of {peaks[0]} TFLOP/s" if peaks else "unknown"
        print(f"  share of {name}'s {precision} peak: {share}")


def _to(batch: Any, device: str) -> Any:
    return type(batch)(*(t.to(device) for t in batch))


def main() -> None:
    """Run all arms and print the results."""
    own = {"rounds": "5", "steps": "10", "arms": ""}
    own |= {key: value for key, _, value in (a.partition("=") for a in sys.argv[1:]) if key in own}
    overrides = [a for a in sys.argv[1:] if a.partition("=")[0] not in own]
    if not overrides:
        sys.exit(__doc__)
    rounds, steps = int(own["rounds"]), int(own["steps"])
    adversarial_from_start = ["model.adversarial_start_steps=0", "model.adversarial_ramp_steps=0"]
    quick = [
        "trainer.max_epochs=1",
        "trainer.budget=null",
        f"trainer.limit_train_batches={steps}",
        "trainer.limit_val_batches=0",
        "callbacks.images=null",
    ]
    config = resolve(checked([*quick, *overrides])[0])
    if config["model"].get("alignment_weight"):
        print("model.alignment_weight=0: the step is timed without the alignment")
        config["model"]["alignment_weight"] = 0.0
    if "adversarial_start_steps" in config["model"]:
        config = resolve(checked([*adversarial_from_start, *quick, *overrides])[0])

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu" else "cpu"
    gpu = "eager,channels_last,compiled,bf16,compiled_bf16,compiled_bf16_graphs"
    arms = (own["arms"] or (gpu if device == "cuda" else "eager,channels_last,compiled")).split(",")
    if device == "cpu" and any("graphs" in arm for arm in arms):
        print("arms with CUDA graphs are left out: they need a CUDA device")
        arms = [arm for arm in arms if "graphs" not in arm] or ["eager"]
    fetch_weights(config)
    data = build_datamodule(config)
    data.setup()
    num, rows = data.batch_size, data.rows["train"][: data.batch_size].tolist()
    pictures = data.pictures
    batch: Batch | LatentBatch = data.on_after_batch_transfer(_to(pictures[rows], device), 0)
    autoencoder = None if config["autoencoder"] in (None, "none") else load_run(config["autoencoder"], device).module
    batches = {"no_cache": batch}
    if autoencoder:
        data.use_latents(*cached_posteriors(autoencoder, data, data.cache_dir))
        batch = data.on_after_batch_transfer(_to(data.source[rows], device), 0)
        arms.append("no_cache")
    bare = {
        arm: BareStep(config, len(data.class_names), batches.get(arm, batch), arm, autoencoder) for arm in dict.fromkeys(arms)
    }
    print(hardware() + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""))
    print(f"{config['model']['_target_'].rpartition('.')[2]}, {data.picture_shape}, batches of {num}, TF32 off")
    for arm, step in bare.items():
        start = time.perf_counter()
        step()
        step()
        print(f"  {arm}: the first two steps took {time.perf_counter() - start:.1f} s")
        step.seconds.clear()

    main_arm = "channels_last" if config["trainer"]["channels_last"] and "channels_last" in arms else arms[0]
    whole = ["Lightning", "Lightning, no cache"] if autoencoder else ["Lightning"]
    rates: dict[str, list[float]] = {name: [] for name in (*bare, *whole)}
    with_precision = {**config, "trainer": {**config["trainer"], "precision": "32-true"}}
    for _ in range(rounds):
        for arm, step in bare.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            rates[arm].append(num * steps / (time.perf_counter() - start))
        for name in whole:
            latents = data.source
            if "no cache" in name:
                data.source = pictures
            rates[name].append(num * steps / lightning_seconds(with_precision, data, autoencoder))
            data.source = latents

    print("\nimages/s")
    for arm, values in rates.items():
        against = main_arm if arm == "Lightning" else "Lightning" if arm.startswith("Lightning") else arms[0]
        print(f"  {arm:<20} {spread(values)}   {ratio(values, rates[against])} of {against}")
    for arm in dict.fromkeys([main_arm, list(bare)[-1]]):
        step = bare[arm]
        total = sum(step.seconds.values())
        print(f"\nphases of a bare step, {arm}: {1000 * total / rounds / steps:,.0f} ms")
        for name, seconds in step.seconds.items():
            print(f"  {seconds / total:6.1%}  {name}")
        print_flops(step, total / rounds / steps, num)
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    print(f"\npeak memory, all arms in one process: {peak:,.0f} MiB")


if __name__ == "__main__":
    one_line_errors(main)
