"""Benchmark DDP over gloo on this machine's CPU: two processes against one, with the same global batch.

    python scripts/benchmark_scaling.py                     minutes on two quiet cores
    python scripts/benchmark_scaling.py rounds=3 epochs=6   and overrides of flowergen.train, such as data.image_size=32

Each arm runs `python -m flowergen.train` on procedural pictures, on at most two cores:

1. one process, one thread;
2. one process, two threads;
3. two processes (`trainer=ddp_cpu`), a thread each, half of the batch each;
4. one process, one thread, half of the batch: the step of arm 3 without communication and without the other process.

It prints a Markdown table of images/s, the median over all epochs except the first of each run, with the range. The arms
alternate within each round, and the ratios are those of the medians of each round. It also prints the distance of the weights
of arms 2 and 3 from those of arm 1 (all three compute the same, except for the order of float32 sums), the time of an
all-reduce of the gradients alone, and the load of the machine before and after.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmark_data import hardware, ratio, spread
from torch import distributed

MODEL = ("model=vae", "model.channels=[32,64,128,256]", "model.latent_dim=128", "model.norm=group", "data.image_size=64")
ARMS = {
    "one process, 1 thread": ("trainer.num_threads=1",),
    "one process, 2 threads": ("trainer.num_threads=2",),
    "two processes, 1 thread each": ("trainer=ddp_cpu",),
    "one process, 1 thread, half the batch": ("trainer.num_threads=1", "data.batch_size=32"),
}
ONE, TWO_THREADS, TWO, HALF = ARMS


def train(folder: Path, overrides: list[str]) -> list[float]:
    """Train, and return the images/s of each epoch after the first."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "flowergen.train", *overrides, f"hydra.run.dir={folder}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    log = (folder / "train.log").read_text()
    return [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) images/s", log)][1:]


def all_reduce_seconds(rank: int, num: int, address: str, results: str) -> None:
    """Time an all-reduce of num float32 numbers as one of two processes; the first one stores the median of 30 repeats."""
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    gradients, seconds = torch.ones(num), []
    for _ in range(30):
        start = time.perf_counter()
        distributed.all_reduce(gradients)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(results).write_text(str(statistics.median(seconds)))
    distributed.destroy_process_group()


def main() -> None:
    """Run all arms and print the results."""
    own = {"rounds": "2", "epochs": "6"}
    own |= {key: value for key, _, value in (a.partition("=") for a in sys.argv[1:]) if key in own}
    overrides = [a for a in sys.argv[1:] if a.partition("=")[0] not in own]
    load = [os.getloadavg()[0]]
    rates: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as scratch:
        common = [
            *MODEL, "data.num_images=640", "data.batch_size=64", f"paths.cache_dir={scratch}/cache", "trainer.accelerator=cpu",
            f"trainer.max_epochs={own['epochs']}", "trainer.limit_val_batches=0", "callbacks.images=null",
            "callbacks.loss_plot=null", *overrides,
        ]  # fmt: skip
        for round_ in range(int(own["rounds"])):
            for number, (arm, changes) in enumerate(ARMS.items()):
                rates[arm].append(train(Path(scratch, f"{round_}_{number}"), _replaced(common, changes)))
        one, *others = (_weights(Path(scratch, f"0_{list(ARMS).index(arm)}")) for arm in (ONE, TWO_THREADS, TWO))
        num = len(one)
        address, results = f"file://{scratch}/rendezvous", f"{scratch}/seconds"
        torch.multiprocessing.spawn(all_reduce_seconds, (num, address, results), nprocs=2)
        seconds = float(Path(results).read_text())
    load.append(os.getloadavg()[0])
    medians = {arm: [statistics.median(rate) for rate in rounds] for arm, rounds in rates.items()}
    print(f"{hardware()}; load {load[0]:.1f} before, {load[1]:.1f} after")
    print(f"{num:,} parameters; batches of 64 except in the last row; {' '.join(overrides)}\n")
    print(f"| | images/s | of {ONE} |\n|---|---|---|")
    for arm, rounds in rates.items():
        print(f"| {arm} | {spread([rate for rates in rounds for rate in rates])} | {ratio(medians[arm], medians[ONE])} |")
    double = [2 * rate for rate in medians[HALF]]
    print(f"\ntwo processes, relative to twice one process with half the batch: {ratio(medians[TWO], double)}")
    print(f"two processes, relative to one with two threads: {ratio(medians[TWO], medians[TWO_THREADS])}")
    for arm, weights in zip((TWO_THREADS, TWO), others, strict=True):
        far = f"{(weights - one).norm() / one.norm():.1e} of their norm, at most {(weights - one).abs().max():.1e}"
        print(f"weights after {own['epochs']} epochs, {arm} against {ONE}: {far}")
    step = 64 / statistics.median(medians[TWO])
    share = f"{seconds / step:.1%} of a step of {1000 * step:.0f} ms"
    print(f"an all-reduce of {4 * num / 1e6:.1f} MB over gloo: {1000 * seconds:.1f} ms, {share}")


def _weights(run: Path) -> torch.Tensor:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([weight.double().flatten() for weight in state.values()])


def _replaced(overrides: list[str], changes: tuple[str, ...]) -> list[str]:
    """Replace the overrides that an arm sets itself; ``trainer=`` also replaces the accelerator."""
    keys = {change.partition("=")[0] for change in changes}
    keys |= {"trainer.accelerator"} if "trainer" in keys else set()
    return [*(line for line in overrides if line.partition("=")[0] not in keys), *changes]


if __name__ == "__main__":
    main()
