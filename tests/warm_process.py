"""``python -m MODULE`` without the seconds of importing torch: a process forked from one that has imported it.

A process of its own all the same: its memory, signals, exit status and files are nobody else's.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch


def warm_run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([python, "-m", module, *arguments])`` gives.

    Args:
        module: to run as ``__main__``.
        arguments: of it.
        folder: to run it in.
        environment: of the process, but for what torch reads when it is imported, see ``_server``.
        timeout: in seconds, for which an exception is raised.
    """
    with tempfile.TemporaryDirectory() as streams:
        process = _server().Process(target=_main, args=(module, list(arguments), folder, dict(environment), streams))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([module, *arguments], timeout, *_read(streams))
        return subprocess.CompletedProcess([module, *arguments], process.exitcode, *_read(streams))


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm_imports"])
    root = str(Path(__file__).parent.parent)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}):
        forkserver.ensure_running()
    return context


def _read(streams: str) -> list[str]:
    return [(Path(streams) / name).read_text(errors="replace") for name in ("stdout", "stderr")]


def _main(module: str, arguments: list[str], folder: Path, environment: dict[str, str], streams: str) -> None:
    assert "torch" in sys.modules, "tests.warm_imports could not be imported"
    for number, name in ((1, "stdout"), (2, "stderr")):
        with open(Path(streams) / name, "wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(folder))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
