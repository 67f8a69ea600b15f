"""The files of a sweep, next to the run folders of its jobs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import yaml

from flowergen.config.overrides import parse
from flowergen.errors import UserError
from flowergen.quoting import HUB
from flowergen.runs.run_folder import RunFolder, locked, write_atomically

Status = Literal["finished", "failed", "pruned"]


class SweepFolder:
    """The files of a sweep: a run folder for each job, ``jobs.yaml``, and ``optuna.db`` if Optuna chose the values.

    ``jobs.yaml`` is a list of ``number``, ``folder``, ``overrides``, ``status`` and ``exit_code``. It includes jobs that failed
    before they could write anything, but not yet jobs that are running or were killed with their sweep.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self.jobs = self.path / "jobs.yaml"
        self.optuna = self.path / "optuna.db"

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against other sweeps."""
        return locked(self.path, "sweeping")

    def has_jobs(self) -> bool:
        """Return True if a sweep has used the folder."""
        return self.jobs.exists() or self.optuna.exists() or any(self.path.glob("*/config.yaml"))

    def record(self, number: int, folder: Path, overrides: Sequence[str], status: Status, exit_code: int | None) -> None:
        """Record how a job ended; ``exit_code`` is None if the job was not waited for."""
        jobs = {job["number"]: job for job in self._read()}
        place = str(folder.relative_to(self.path)) if folder.is_relative_to(self.path) else str(folder)
        jobs[number] = {
            "number": number,
            "folder": place,
            "overrides": list(overrides),
            "status": status,
            "exit_code": exit_code,
        }
        content = [jobs[key] for key in sorted(jobs)]
        write_atomically(self.jobs, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def _read(self) -> list[dict[str, Any]]:
        """Return the entries so far; a damaged file is rewritten, as the run folders contain everything else."""
        try:
            content = yaml.safe_load(self.jobs.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return []
        entries = content if isinstance(content, list) else []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("number"), int)]


def job_overrides(overrides: Sequence[str]) -> list[str]:
    """Remove the overrides meant for the sweep; a job with ``hparams_search`` would start another sweep."""
    return [line for line in overrides if not line.lstrip("+~").startswith(("hydra.", "hydra/", "hparams_search=", "sweep."))]


def check_unchanged(number: int, run: RunFolder, overrides: Sequence[str]) -> None:
    """Raise a ``UserError`` if a run folder of a continued sweep is of a job with other values, or a process is using it."""
    with run.locked():
        stored = run.read_overrides()
    before, now = _values(stored), _values(overrides)
    kept = {line.removeprefix("++").partition("=")[0] for line in stored if line.startswith("++")} - set(now)  # by a resume
    for key in [key for key in {**before, **now} if key not in kept]:
        if before.get(key) != now.get(key):
            old, new = (f"{key}={values[key]}" if key in values else f"no {key}" for values in (before, now))
            raise UserError(
                f"job {number} in {run.path} was started with {old}, but now has {new}: a continued sweep keeps its values; "
                "use the old ones, or another hydra.sweep.dir"
            )


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values by key, except paths, which a resumed run keeps, and commits of the hub, which a job adds."""
    parsed = [override for override in parse(overrides) if not override.key_or_group.startswith(("paths.", "hydra."))]
    values = {override.key_or_group: override.value() for override in parsed}
    hub = {key: value for key, value in values.items() if isinstance(value, str) and value.startswith(HUB)}
    return values | {key: value.partition("@")[0] for key, value in hub.items()}
