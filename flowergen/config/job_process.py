"""A job of a sweep as a process of its own."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowergen.config.overrides import quoted_path

Process = subprocess.Popen[Any]

PATIENCE_SECONDS = 30  # between asking a process to stop and killing it: training stops at the end of a batch


def start_job(sweep: DictConfig, overrides: Sequence[str], folder: Path, resume: bool = False) -> Process:
    """Start ``python -m flowergen.train``.

    Args:
        sweep: the config of the sweep.
        overrides: of the job.
        folder: its run folder.
        resume: go on with the run that is there.
    """
    search = [line for line in sweep.hydra.overrides.hydra if line.startswith("hydra.searchpath=")]  # from --config-dir
    places = [line for line in overrides if line.startswith("paths.")]
    own = (
        [f"resume={quoted_path(folder)}", *places] if resume else [*search, *overrides, f"hydra.run.dir={quoted_path(folder)}"]
    )
    # a file that sets hydra.mode for the sweep must not make a sweep of the job
    return subprocess.Popen([sys.executable, "-m", "flowergen.train", *own, "hydra.mode=RUN"])


def stop(process: Process) -> None:
    """Ask a process to end, and after a while make it."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def stopped_with_us(process: Process) -> Iterator[Process]:
    """Let no job outlive its sweep: on Ctrl-C, which a terminal sends to the job too, or an error of ours."""
    try:
        yield process
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS / 3)
        raise
    finally:
        if process.poll() is None:
            stop(process)


@contextmanager
def saying_how_to_go_on(say: Callable[[str], None]) -> Iterator[None]:
    """Around a sweep: the last words of an interrupted one are the command that continues it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends is a Ctrl-C as well
    try:
        yield
    except KeyboardInterrupt:
        own = [argument for argument in sys.argv[1:] if "sweep.skip_finished=" not in argument]
        command = ["python", "-m", "flowergen.train", *own, "sweep.skip_finished=true"]
        say(f"interrupted; go on with: {shlex.join(command)}")
        raise
