"""Training from Python: the ``train`` command as a process, with its output."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flowergen.app.train_command import checked, new_folder, value_of
from flowergen.data.progress_bar import REPORT_INTERVAL_VARIABLE
from flowergen.errors import UserError
from flowergen.quoting import quote_paths, quoted_path
from flowergen.runs.run_folder import find_run

PROGRESS = re.compile(r"  batch .*  ETA |^\w+: [\d,]+ of [\d,]+, about .* left$")  # of training; of data.progress_bar


def fit(overrides: Sequence[str]) -> Path:
    """Train as ``flowergen.fit`` does, and return the run folder."""
    typed = quote_paths(list(overrides))
    flags = [line for line in typed if line.startswith("-")]
    if flags:
        raise UserError(f"fit() trains one model and takes key=value only, not {flags[0]}")
    resumed, folder = value_of("resume", typed), value_of("hydra.run.dir", typed)
    if resumed:
        run = find_run(str(resumed), "resume")[0].path
    else:
        composed, _ = checked(typed)
        run = Path(str(folder)).absolute() if folder else new_folder(composed)
        typed = [line for line in typed if not line.startswith("hydra.run.dir=")] + [f"hydra.run.dir={quoted_path(run)}"]
    _run([sys.executable, "-m", "flowergen.train", *typed], run)
    return run


def _run(command: Sequence[str], run: Path) -> None:
    """Run the command and print its output; progress lines overwrite each other."""
    environment = {**os.environ, REPORT_INTERVAL_VARIABLE: "1", "PYTHONUNBUFFERED": "1"}
    # in its own session, so that an interrupt reaches it only once, from here
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    last, in_place = "", False
    try:
        for line in process.stdout:
            line, progress = line.rstrip("\n"), PROGRESS.search(line) is not None
            print(
                ("\r" if in_place else "") + line.ljust(len(last) if in_place else 0), end="" if progress else "\n", flush=True
            )
            last, in_place = line, progress
        status = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise UserError(f"stopped; continue with fit(['resume={run}'])") from None
    if status:
        raise UserError(last.removeprefix("error: ") if last.startswith("error: ") else f"training ended with status {status}")
