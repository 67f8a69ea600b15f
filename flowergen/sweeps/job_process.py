"""Run a sweep, and each of its jobs in a separate process."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from flowergen.quoting import quoted_path
from flowergen.sweeps.sweep_folder import SweepFolder

Process = subprocess.Popen[Any]

PATIENCE_SECONDS = 30  # between SIGTERM and SIGKILL: training stops at the end of a batch


def start_job(sweep: DictConfig, overrides: Sequence[str], folder: Path, resume: bool = False) -> Process:
    """Start a job of a sweep in its run folder, or resume it there, with ``python -m flowergen.train``."""
    search = [line for line in sweep.hydra.overrides.hydra if line.startswith("hydra.searchpath=")]  # from --config-dir
    places = [line for line in overrides if line.startswith("paths.")]
    own = (
        [f"resume={quoted_path(folder)}", *places] if resume else [*search, *overrides, f"hydra.run.dir={quoted_path(folder)}"]
    )
    # a config file that sets hydra.mode for the sweep must not turn the job into a sweep
    return subprocess.Popen([sys.executable, "-m", "flowergen.train", *own, "hydra.mode=RUN"])


def stop(process: Process) -> None:
    """Terminate a process, and kill it if it does not exit in time."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def terminated_on_exit(process: Process) -> Iterator[Process]:
    """Terminate the job if the sweep ends with an error or by Ctrl-C, which a terminal also sends to the job."""
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
def sweeping(config: DictConfig, log: Callable[[str], None]) -> Iterator[SweepFolder]:
    """Set up Hydra's logging and lock the folder of a sweep; if it is interrupted, log the command that continues it."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    sweep = SweepFolder(str(config.hydra.sweep.dir))
    sweep.path.mkdir(parents=True, exist_ok=True)
    with sweep.locked():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # treat a scheduler's SIGTERM like Ctrl-C
        try:
            yield sweep
        except KeyboardInterrupt:
            own = [argument for argument in sys.argv[1:] if "sweep.skip_finished=" not in argument]
            command = ["python", "-m", "flowergen.train", *own, "sweep.skip_finished=true"]
            log(f"interrupted; continue with: {shlex.join(command)}")
            raise
