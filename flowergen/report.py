"""``python -m flowergen.report``: write an HTML page about a run or a sweep, running or finished."""

import csv
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Report
from flowergen.app.plain_command import read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.run_folder import RunFolder, find_run, make_folder, write_atomically
from flowergen.runs.run_page import write_page
from flowergen.viz.sweep_page import Job, csv_table, html_page, swept_keys, title_of

OWN_SETTINGS = ("hydra", "sweep.", "paths.")  # settings of the sweep, not of a job


def main() -> None:
    """Read every job's folder, write the page and the table, and print where they are."""
    config = read_command_line("report", Report, sys.argv[1:])
    if (config["run"] is None) == (config["sweep"] is None):
        raise UserError("give one of run=RUN and sweep=DIR; see --help")
    if config["run"] is not None:
        _run_page(config)
        return
    sweep = Path(config["sweep"])
    jobs = read_sweep(sweep)
    folder = Path(config["out"] or sweep)
    make_folder(folder)
    page, table = folder / "report.html", folder / "report.csv"
    content = html_page(jobs, f"Sweep {sweep.parent.name}/{sweep.name}, {time.strftime('%Y-%m-%d %H:%M')}", folder)
    try:
        write_atomically(page, content)
        write_atomically(table, csv_table(jobs))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder with out=") from error

    keys = swept_keys(jobs)
    for job in jobs:
        elbo = f"  ELBO {job.metric('elbo'):,.1f}" if job.metric("elbo") is not None else ""
        print(f"{job.name:<4} {title_of(job, keys)}  {job.status}{elbo}{f'  {job.reason}' if job.reason else ''}")
    print(f"page:  {page}\ntable: {table}")


def _run_page(config: dict[str, Any]) -> None:
    if config["out"] is not None:
        raise UserError("out= is for sweep=: a run's page is written into the run folder, whose files it shows")
    run, _ = find_run(config["run"])
    try:
        print(f"page: {printable(str(write_page(run)))}")
    except OSError as error:
        raise UserError(f"{run.page} cannot be written ({error.strerror}): copy the run to a writable folder") from error


def read_sweep(sweep: Path) -> list[Job]:
    """Read every job of a sweep, in order.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    entries = [entry for entry in _yaml_list(sweep / "jobs.yaml") if isinstance(entry, dict)]
    started = {str(entry.get("folder", entry.get("number"))): entry for entry in entries}
    try:
        folders = {path.name for path in sweep.iterdir() if (path / "config.yaml").is_file() or (path / "train.log").is_file()}
        names = sorted(folders | started.keys(), key=lambda name: (len(name), name))  # 2 before 10
        if not names:
            raise UserError(f"sweep={sweep} contains no run: give the folder that a sweep (-m) printed")
        return [_read_job(sweep / name, started.get(name, {})) for name in names]
    except OSError as error:
        raise UserError(f"sweep={sweep} cannot be read: {error.strerror}: {error.filename}") from error


def _read_job(folder: Path, started: dict[str, Any]) -> Job:
    run = RunFolder(folder)
    overrides = _yaml_list(run.overrides) or started.get("overrides", [])
    pairs = (str(line).lstrip("+").partition("=") for line in overrides)
    status, reason = _status(run, started)
    return Job(
        name=folder.name,
        status=status,
        reason=reason,
        overrides={key: value for key, _, value in pairs if not key.startswith(OWN_SETTINGS)},
        epochs=_epochs(run.metrics),
        page=run.page if run.page.is_file() else None,
        pictures={kind: newest for kind in ("reconstruction", "generated") if (newest := _newest(run.images, kind))},
    )


def _status(run: RunFolder, started: dict[str, Any]) -> tuple[str, str]:
    if started.get("status") == "pruned":
        return "pruned", "stopped early: its metric fell behind the other trials'"
    exit_, exit_code = run.exit(), started.get("exit_code")
    advice = f"resume with {shlex.quote(f'resume={run.path}')}"
    if started.get("status") == "failed" and (exit_ == "finished" or str(exit_).startswith("running")):
        if exit_code is None:
            return "interrupted", "its values were tried again by another trial"
        why = "its metric was never finite" if exit_code == 0 else f"it ended with status {exit_code}"
        return "failed", f"{why}{' (killed: out of memory?)' if exit_code == -9 else ''}"
    if exit_ is None:
        log = run.path / "train.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        return "failed", lines[-1] if lines else f"never started (exit status {exit_code})"
    if exit_ == "finished":
        return "finished", ""
    if exit_.startswith("KeyboardInterrupt"):
        return "interrupted", advice
    if exit_.startswith("running"):
        files = [path.stat().st_mtime for path in (run.metrics, run.provenance) if path.is_file()]
        return (
            exit_,
            f"last wrote a number at {time.strftime('%H:%M:%S', time.localtime(max(files)))}; if it was killed, {advice}",
        )
    return "failed", " ".join(exit_.split())


def _epochs(path: Path) -> list[dict[str, float]]:
    """Return the rows with a validation, which is of the training set (``trainset/``) if nothing is held out."""
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # the last line may be incomplete
    wanted = ("epoch", "val/", "trainset/", "train_epoch/loss")
    try:
        numbers = [{k: float(v) for k, v in row.items() if k and v and k.startswith(wanted)} for row in rows]
    except (ValueError, TypeError, csv.Error):  # not written by flowergen
        return []
    return [row for row in numbers if any(key.startswith(("val/", "trainset/")) for key in row)]


def _newest(folder: Path, kind: str) -> Path | None:
    found = [(int(m[1]), path) for path in folder.glob(f"{kind}_epoch_*.png") if (m := re.search(r"_(\d+)\.png$", path.name))]
    return max(found)[1] if found else None


def _yaml_list(path: Path) -> list[Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return content if isinstance(content, list) else []


if __name__ == "__main__":
    one_line_errors(main)
