"""Train all three stages, draw samples, compute the metric card, and write a page with all results.

    python scripts/reproduce.py                       what `make flowers` does: Oxford 102 Flowers, with the budget of an hour
    python scripts/reproduce.py minutes=20 data.root=DIR paths.cache_dir=DIR seed=1 out=DIR
    python scripts/reproduce.py data=image_folder data.root=DIR out=DIR    your own pictures, with or without class folders
    python scripts/reproduce.py recipe=gpu            for a large GPU, with the budget of ten minutes (not measured on one)

The experiments `flowers_laptop_vae_gan`, `flowers_laptop_ldm` and `flowers_laptop_decoder`, or those of another recipe, are
trained for 0.2, 0.5 and 0.15 of the minutes, at 64 px; the rest is for samples and the metric card. On a CPU, diffusion is
compiled if there is a C++ compiler, and computes in bf16 if the CPU does. `out` contains their run folders `autoencoder`,
`diffusion` and `decoder`; the page is `index.html` in the last one. If it was stopped or killed, run the same command again: it
resumes, and finished parts are not repeated.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from flowergen.app.command import one_line_errors
from flowergen.errors import UserError, printable
from flowergen.runs.run_folder import RunFolder

AUTOENCODER, DIFFUSION, DECODER = 0.2, 0.5, 0.15  # of the minutes
SHOWN = (
    "classes=[sunflower,rose,passion_flower,water_lily,foxglove,gazania,tiger_lily,bird_of_paradise]",
    "num_per_class=8",
)
MINUTES = {"laptop": "60", "gpu": "10"}  # by recipe
CPU_OPTIONS = """
import torch
if not torch.accelerator.is_available():
    cpu = torch.cpu.get_capabilities()
    if cpu.get("avx512_bf16") or cpu.get("amx_bf16"):
        print("trainer.precision=bf16-mixed")
    torch.compile(torch.neg)(torch.zeros(8))
    print("trainer.compile=true")
"""
DEFAULTS = {
    "recipe": "laptop",
    "minutes": "",
    "data": "flowers102",
    "data.root": "",
    "paths.cache_dir": "",
    "seed": "0",
    "out": "outputs/flowers",
}


def main() -> None:
    """Run each part in a separate process."""
    given = dict(DEFAULTS)
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key not in DEFAULTS or not value:
            raise UserError(f"{argument}: this command takes {', '.join(f'{name}=VALUE' for name in DEFAULTS)}")
        given[key] = value
    recipe = given["recipe"]
    if recipe not in MINUTES:
        raise UserError(f"recipe={recipe}: choose from {', '.join(MINUTES)}")
    try:
        minutes = float(given["minutes"] or MINUTES[recipe])
    except ValueError:
        minutes = 0.0
    if not 1 <= minutes <= 10_000:
        raise UserError(f"minutes={given['minutes']} must be a number from 1 to 10,000")
    out = Path(given["out"]).absolute()
    first, second, third = (RunFolder(out / name) for name in ("autoencoder", "diffusion", "decoder"))
    places = [f"{key}={given[key]}" for key in ("data.root", "paths.cache_dir") if given[key]]
    own = [f"data={given['data']}", f"seed={given['seed']}"]

    say(minutes, "1 of 5: the autoencoder")
    train(first, AUTOENCODER * minutes, [f"experiment=flowers_{recipe}_vae_gan", *own], places)
    say((1 - AUTOENCODER) * minutes, "2 of 5: diffusion in its latent space")
    more = [*places, f"autoencoder={first.path}", *(cpu_options() if begins(second) else [])]
    train(second, DIFFUSION * minutes, [f"experiment=flowers_{recipe}_ldm", *own], more)
    say((1 - AUTOENCODER - DIFFUSION) * minutes, "3 of 5: the decoder, on samples of the diffusion model")
    stage3 = [f"experiment=flowers_{recipe}_decoder", *own]
    if recipe == "laptop":  # drawing the samples takes a fifth of the stage's minutes there
        stage3.append(f"model.num_latents={max(128, min(2048, int(35 * minutes)))}")
    train(third, DECODER * minutes, stage3, [*places, f"diffusion={second.path}"])
    say((1 - AUTOENCODER - DIFFUSION - DECODER) * minutes, "4 of 5: samples")
    if not list(third.path.glob("samples/*/denoising_path.png")):  # written last
        run("sample", f"run={third.path}", *(SHOWN if given["data"] == DEFAULTS["data"] else ()))
    say(None, "5 of 5: the metric card")
    run("evaluate", f"run={third.path}", *(place for place in places if place.startswith("data.root=")))
    print(f"\npage: {printable(str(third.page))}")


def cpu_options() -> list[str]:
    """Return the overrides that make a step of diffusion faster on this CPU; none if there is a GPU.

    They are bf16 if the CPU computes in it (x86 only), and compilation if there are a C++ compiler and Python's headers.
    Measured in docs/lab-notebook.md: "bf16 and compilation on a CPU".
    """
    with tempfile.TemporaryDirectory() as cache:  # an existing one may hold what was compiled before
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        found = subprocess.run([sys.executable, "-c", CPU_OPTIONS], env=environment, capture_output=True, text=True)
    return found.stdout.split()


def say(minutes_left: float | None, what: str) -> None:
    """Print a heading between two parts."""
    left = "" if minutes_left is None else f", about {minutes_left:.0f} minutes left"
    print(f"\n== {what}{left}", flush=True)


def train(folder: RunFolder, minutes: float, overrides: list[str], more: list[str]) -> None:
    """Start a run, resume it, or do nothing if it is finished. ``more`` are overrides with paths, which may differ then."""
    own = [*overrides, f"trainer.budget={60 * minutes:.0f}s"]
    if begins(folder):
        run("train", *own, *more, f"hydra.run.dir={folder.path}")
        return
    stored = folder.read_overrides()
    by_default = f"data={DEFAULTS['data']}" if not any(line.startswith("data=") for line in stored) else None
    other = [line for line in own if line not in stored and line != by_default]
    if other:
        raise UserError(f"{folder.path} contains a run without {' '.join(other)}: give another folder with out=")
    if folder.exit() != "finished" and not folder.is_complete():
        run("train", f"resume={folder.path}")


def begins(folder: RunFolder) -> bool:
    """Return True if a run has not begun: it has no folder, or was refused before its first step."""
    return not folder.config.exists() or folder.never_started()


def run(command: str, *arguments: str) -> None:
    """Run ``python -m flowergen.COMMAND``, and exit if it fails. Ctrl-C reaches both, and the command saves its work."""
    process = subprocess.Popen([sys.executable, "-m", f"flowergen.{command}", *arguments])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None:
        with suppress(KeyboardInterrupt):
            process.wait()
    signal.signal(signal.SIGTERM, before)
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


if __name__ == "__main__":
    one_line_errors(main)
