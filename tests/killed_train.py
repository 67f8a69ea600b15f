"""``python -m flowergen.train`` that sends itself a signal: KILL=SIGNAL:MOMENT:COUNT python -m tests.killed_train ARGUMENTS...

The moment is in the environment, which the processes of a distributed run inherit; their arguments are the first one's.
"""

import math
import os
import resource
import signal
from typing import Any

from flowergen import train
from flowergen.app.command import one_line_errors


def kill_at(owner: Any, name: str, count: int, signum: int = signal.SIGKILL) -> None:
    """Replace a function by one that sends the process a signal in its ``count``-th call, before doing anything."""
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def poison(owner: Any, step: int) -> None:
    """Make the loss of an optimiser step infinite."""
    objective = owner.objective

    def poisoned(self: Any, *args: Any) -> Any:
        terms = objective(self, *args)
        if self.training and self.optimizer_steps + 1 == step:
            terms |= {"loss": terms["loss"] * math.inf, "loss_kl": terms["loss_kl"] * math.inf}
        return terms

    owner.objective = poisoned


def main() -> None:
    """Set the trap, then train."""
    from flowergen.callbacks import checkpoints, evaluation
    from flowergen.callbacks.metrics_csv import MetricsCsv
    from flowergen.modules.decoder import DecoderModule
    from flowergen.modules.latent_ddpm import LatentDDPMModule
    from flowergen.modules.vae import VAEModule
    from flowergen.modules.vae_gan import VAEGANModule

    moments = {
        "evaluation": (evaluation, "measure_samples"),
        "training step": (VAEModule, "training_step"),
        "VAE-GAN training step": (VAEGANModule, "training_step"),
        "diffusion training step": (LatentDDPMModule, "training_step"),
        "diffusion validation step": (LatentDDPMModule, "validation_step"),
        "decoder training step": (DecoderModule, "training_step"),
        "validation step": (VAEModule, "validation_step"),
        "log": (MetricsCsv, "log_metrics"),
        "publish": (checkpoints, "_publish"),
    }
    if largest := os.environ.get("LARGEST_FILE"):  # in bytes: for a file that is larger, the disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    if step := os.environ.get("NOT_FINITE"):
        poison(VAEModule, int(step))
    name, moment, count = os.environ["KILL"].split(":")
    name, _, whose = name.partition("@")  # of several processes: SIGKILL all of them or one, the others are for the first
    whose = whose or ("" if name == "SIGKILL" else "0")
    if whose in ("", os.environ.get("LOCAL_RANK", "0")):
        kill_at(*moments[moment], int(count), signal.Signals[name])
    one_line_errors(train.main)


if __name__ == "__main__":
    main()
