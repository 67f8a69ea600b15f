"""Kill and resume a run of each family repeatedly, at random moments, and compare it with an uninterrupted run.

    python scripts/kill_campaign.py                                        twenty kills a family, half an hour on two cores
    python scripts/kill_campaign.py kills=5 families=vae,latent_ddpm seed=1 out=DIR

Every session runs the train command on procedural pictures. One SIGKILL in five is sent while a session starts, the others
during training, at moments drawn from ``seed``. It prints a Markdown table; the exit status is 1 if any file differs.

Compared bit by bit: ``metrics.csv``, ``weights.safetensors``, ``latents.safetensors``, pictures, ``loss_plot.png``, and the
complete checkpoints: weights, optimisers, loops, callbacks, running means, our own counts. Not compared: TensorBoard's files
and logs, which contain the time of day.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

COMMON = (
    "data.num_images=240", "data.num_classes=4", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.num_threads=1",
    "trainer.log_every_n_steps=3", "callbacks.images.every_epochs=2", "callbacks.images.num_samples=16",
    "callbacks.checkpoints.checkpoint_every_steps=5", "callbacks.checkpoints.keep_every_epochs=9", "model.ema_decay=0.99",
)  # fmt: skip
FAMILIES = {
    "vae": ("model=vae", "data.image_size=32", "model.channels=[8,16]", "model.latent_dim=8", "trainer.max_epochs=90"),
    "vae_gan": (
        "model=vae_gan", "data.image_size=32", "model.blocks.channels=[8,16]", "model.blocks.num_blocks=[0,1]",
        "model.perceptual=discriminator", "model.discriminator.channels=8", "model.adversarial_start_steps=50",
        "model.adversarial_ramp_steps=50", "model.class_weight=0.1", "model.center_weight=0.1", "trainer.max_epochs=40",
    ),
    "latent_ddpm": (
        "model=latent_ddpm", "model.network.channels=16", "model.network.multipliers=[1,2]", "model.network.num_blocks=1",
        "model.sampling.steps=4", "trainer.max_epochs=90",
    ),
}  # fmt: skip
BEGINS = "\nrun folder "  # the last line before a session trains


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a session in a new process group."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "flowergen.train", *arguments],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for_training(process: subprocess.Popen[bytes], log: Path, before: int) -> None:
    """Wait until the session is about to take its first step, or has ended."""
    while process.poll() is None and log.read_text().count(BEGINS) == before:
        time.sleep(0.05)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the end of a session, which must succeed."""
    if process.wait():
        sys.exit(log.read_text()[-3000:])


def differing(a: Path, b: Path) -> tuple[int, list[str]]:
    """Compare two run folders; return the number of compared files, and the names of those that differ."""
    patterns = (
        "metrics.csv",
        "weights.safetensors",
        "latents.safetensors",
        "loss_plot.png",
        "images/*.png",
        "checkpoints/*.ckpt",
    )
    names = sorted({str(path.relative_to(run)) for run in (a, b) for pattern in patterns for path in run.glob(pattern)})
    return len(names), [name for name in names if not _equal(a / name, b / name)]


def _equal(a: Path, b: Path) -> bool:
    if not (a.is_file() and b.is_file()):
        return False
    if a.suffix != ".ckpt":
        return a.read_bytes() == b.read_bytes()
    return _same(torch.load(a, weights_only=True), torch.load(b, weights_only=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (a != a and b != b)


def campaign(family: str, kills: int, rng: np.random.Generator, out: Path, extra: list[str]) -> bool:
    """Kill, resume and compare a run of a family, and print its row of the table."""
    whole, run, log = out / family / "whole", out / family / "killed", out / f"{family}.log"
    arguments = [*FAMILIES[family], *COMMON, *extra, f"paths.cache_dir={out / 'cache'}"]
    began = time.monotonic()
    process = start([*arguments, f"hydra.run.dir={whole}"], log)
    wait_for_training(process, log, 0)
    startup = time.monotonic() - began
    finish(process, log)
    training = time.monotonic() - began - startup

    hits = {"starting": 0, "training": 0}
    steps: set[int] = set()
    for number in range(kills):
        resume = [f"resume={run}"] if (run / "config.yaml").exists() else [*arguments, f"hydra.run.dir={run}"]
        phase = "starting" if number % 5 == 4 else "training"
        before = log.read_text().count(BEGINS)
        process = start(resume, log)
        # the delays are chosen so that the total training time stays below that of the uninterrupted run
        delay = rng.random() * (startup if phase == "starting" else 1.6 * training / kills)
        if phase == "training":
            wait_for_training(process, log, before)
        try:
            process.wait(delay)
            print(f"{family}: session {number + 1} ended by itself", file=sys.stderr)
            continue
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        hits[phase] += 1
        last = run / "checkpoints" / "last.ckpt"
        if last.exists():
            steps.add(torch.load(last, weights_only=True)["flowergen"]["optimizer_steps"])
    finish(start([f"resume={run}"], log), log)
    num, different = differing(whole, run)
    verdict = "**all equal**" if not different else f"**differ: {', '.join(different)}**"
    print(
        f"| {family} | {hits['starting']} + {hits['training']} | {len(steps)}, from step {min(steps, default=0):,} to "
        f"{max(steps, default=0):,} | {num} | {verdict} |",
        flush=True,
    )
    return not different


def main() -> None:
    """Read the arguments and run the campaign of each family."""
    own = {"kills": "20", "seed": "0", "families": ",".join(FAMILIES), "out": ""}
    own |= {key: value for key, _, value in (argument.partition("=") for argument in sys.argv[1:])}
    if unknown := own.keys() - {"kills", "seed", "families", "out"}:
        sys.exit(f"error: {', '.join(unknown)}: this script takes kills=, seed=, families= and out=")
    families = own["families"].split(",")
    if not set(families) <= FAMILIES.keys():
        sys.exit(f"error: families={own['families']}: choose from {', '.join(FAMILIES)}")
    out = Path(own["out"] or tempfile.mkdtemp()).absolute()
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int(own["seed"]))
    print("| family | kills while starting + training | checkpoints resumed from | files compared | |")
    print("|---|---|---|---|---|", flush=True)
    equal = []
    for family in families:
        extra = []
        if family == "latent_ddpm":
            autoencoder, log = out / "autoencoder", out / "autoencoder.log"
            if not autoencoder.exists():
                short = [*FAMILIES["vae_gan"], *COMMON, "trainer.max_epochs=3", "callbacks.images.every_epochs=3"]
                finish(start([*short, f"paths.cache_dir={out / 'cache'}", f"hydra.run.dir={autoencoder}"], log), log)
            extra = [f"autoencoder={autoencoder}"]
        equal.append(campaign(family, int(own["kills"]), rng, out, extra))
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
