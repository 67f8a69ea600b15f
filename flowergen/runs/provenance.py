"""provenance.json: the origin of a run's results."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flowergen.errors import TrainingEnded, UserError
from flowergen.runs.run_folder import REFUSED_PREFIX, RunFolder, write_atomically


class Provenance:
    """Writes provenance.json, the origin of a run's results. A context manager around the run; earlier sessions are kept.

    If a session is refused with a ``UserError``, the provenance.json, config.yaml and overrides.yaml of a run that has begun
    are restored. ``init`` is the run that it starts from, if any.
    """

    def __init__(self, run: RunFolder, seed: int, init: str | None = None):
        self.run = run
        self.record: dict[str, Any] = {
            "command": shlex.join([Path(sys.executable).name, "-m", "flowergen.train", *sys.argv[1:]]),
            "seed": seed,
            "init": init,
            "start": _now(),
            "end": None,
            "exit": "running, or killed",
            "git": git_state(),
            "versions": versions(),
            "hardware": hardware(),
        }
        self.before: dict[Path, str] = {}
        try:
            earlier = json.loads(run.provenance.read_text())
            self.record["earlier"] = [*earlier.pop("earlier", []), earlier]
        except (OSError, ValueError, AttributeError):
            self.record["earlier"] = []
        if self.record["earlier"] and not run.never_started():
            stored = (run.config, run.overrides, run.provenance)
            self.before = {path: path.read_text(encoding="utf-8") for path in stored if path.exists()}

    def __enter__(self) -> "Provenance":
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        refused = kind is not None and issubclass(kind, UserError) and not issubclass(kind, TrainingEnded)
        if refused and self.before:
            for path, text in self.before.items():
                write_atomically(path, text)
            return
        self.record["end"] = _now()
        self.record["exit"] = "finished" if kind is None else f"{REFUSED_PREFIX if refused else f'{kind.__name__}:'} {error}"
        self._write()

    def _write(self) -> None:
        write_atomically(self.run.provenance, json.dumps(self.record, indent=2) + "\n")


def git_state() -> dict[str, Any] | None:
    """Return commit and dirty flag of the checkout that contains the code; None for an installed wheel."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails if installed inside another repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    packages = ("flowergen", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy", "pillow", "diffusers")
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Return the hardware that this process computes on."""
    import torch  # checking the command line must not import it

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "cpu_cores": os.cpu_count(), "gpus": gpus}


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
