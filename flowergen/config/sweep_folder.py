"""What a sweep leaves on the disk beside the run folders of its jobs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import yaml

from flowergen.config.overrides import parse
from flowergen.config.run_folder import RunFolder, locked, write_atomically
from flowergen.errors import UserError

Status = Literal["finished", "failed", "pruned"]


class SweepFolder:
    """The files of a sweep: a run folder for each job, ``jobs.yaml``, and ``optuna.db`` where Optuna chose the values.

    ``jobs.yaml`` is a list of ``number``, ``folder``, ``overrides``, ``status`` and ``exit_code``. It also knows of a job that
    failed before it could write anything; a job that runs, or was killed with its sweep, is not in it yet.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self.jobs = self.path / "jobs.yaml"
        self.optuna = self.path / "optuna.db"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other sweeps out."""
        return locked(self.path, "sweeping")

    def holds_jobs(self) -> bool:
        """Whether a sweep has been here."""
        return any(file.exists() for file in (self.jobs, self.optuna)) or any(self.path.glob("*/config.yaml"))

    def record(
        self,
        number: int,
        folder: Path,
        overrides: Sequence[str],
        status: Status,
        exit_code: int | None,
    ) -> None:
        """Enter how a job ended; None is the exit code of one that was not waited for."""
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
        """The entries so far; a damaged file is written anew, as the run folders know the rest."""
        try:
            content = yaml.safe_load(self.jobs.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return []
        entries = content if isinstance(content, list) else []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("number"), int)]


def job_overrides(overrides: Sequence[str]) -> list[str]:
    """Without what the sweep reads, the jobs do not: one that inherited ``hparams_search`` would start a sweep of its own."""
    return [line for line in overrides if not line.lstrip("+~").startswith(("hydra.", "hydra/", "hparams_search=", "sweep."))]


def check_unchanged(number: int, run: RunFolder, overrides: Sequence[str]) -> None:
    """A run folder of a sweep that is continued must be of the job that comes into it now, and no process may be using it.

    Raises:
        UserError: names the job and the first value that differs.
    """
    with run.locked():
        before, now = _values(run.read_overrides()), _values(overrides)
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            old, new = (f"{key}={values[key]}" if key in values else f"no {key}" for values in (before, now))
            raise UserError(
                f"job {number} in {run.path} was started with {old}, and now it is {new}: a continued sweep keeps its values; "
                "take the old ones, or another hydra.sweep.dir"
            )


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """By key; but for where things lie, which a resumed run keeps."""
    parsed = [override for override in parse(overrides) if not override.key_or_group.startswith(("paths.", "hydra."))]
    return {override.key_or_group: override.value() for override in parsed}
