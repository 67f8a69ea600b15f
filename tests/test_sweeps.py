"""Sweeps as real processes: interrupted, continued, searched by Optuna."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml

from tests.conftest import Command
from tests.test_train import assert_equal_weights

pytestmark = pytest.mark.slow


def stopped_when(
    moment: Callable[[], bool], by: signal.Signals, arguments: list[str], environment: dict[str, str], folder: Path
) -> tuple[int, str]:
    """Sweep until a moment comes, then signal the sweep and its job, as a terminal does; status and output."""
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowergen.train", *arguments],
            cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 200
        while not moment() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before its moment: " + (folder / "output").read_text()
        os.killpg(process.pid, by)
        status = process.wait(60)
        output.seek(0)
        return status, output.read()


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in yaml.safe_load((sweep / "jobs.yaml").read_text())]


def how_it_ended(run: Path) -> str:
    return json.loads((run / "provenance.json").read_text())["exit"]


def test_an_interrupted_sweep_goes_on_as_if_nothing_had_happened(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Ctrl-C in its first job, SIGKILL in its second: finished jobs stay as they are, the others end bit-equal."""
    sweep = tmp_path / "sweep"
    tiny = [*tiny_run, "trainer.max_epochs=12", "callbacks.images.every_epochs=100"]
    arguments = [*tiny, "hparams_search=beta", "model.beta=1,4", f"hydra.sweep.dir={sweep}"]
    continued = [*arguments, "sweep.skip_finished=true"]
    first, second = (sweep / str(n) / "checkpoints" / "last.ckpt" for n in range(2))

    status, output = stopped_when(first.exists, signal.SIGINT, arguments, process_environment, tmp_path)
    assert status == 130
    assert "sweep.skip_finished=true" in output.strip().splitlines()[-1]
    assert "Traceback" not in output
    assert how_it_ended(sweep / "0") == "Stopped: SIGINT"

    status, output = stopped_when(second.exists, signal.SIGKILL, continued, process_environment, tmp_path)
    assert "resumed from" in output
    assert status == -signal.SIGKILL
    assert statuses(sweep) == ["finished"]
    written = first.stat().st_mtime_ns

    refused = command("train", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "sweep.skip_finished=true" in refused.stderr
    refused = command("train", *continued, "model.beta=1,8")
    assert refused.returncode == 2
    assert "error: job 1 " in refused.stderr
    assert "started with model.beta=4, but now has model.beta=8" in refused.stderr

    done = command("train", *continued)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(already finished)" in done.stdout
    assert first.stat().st_mtime_ns == written
    assert statuses(sweep) == ["finished", "finished"]
    assert not any(
        line.startswith(("sweep", "hparams")) for line in yaml.safe_load((sweep / "1" / "overrides.yaml").read_text())
    )

    whole = tmp_path / "whole"
    assert command("train", *tiny, "model.beta=4", f"hydra.run.dir={whole}").returncode == 0
    assert_equal_weights(whole, sweep / "1")

    # killed after the last checkpoint and before the end
    (sweep / "1" / "weights.safetensors").unlink()
    (sweep / "1" / "provenance.json").unlink()
    done = command("train", *continued)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (sweep / "1" / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_a_third_party_launcher(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Joblib's, two jobs at a time: the runs of the sweep are those that single commands train."""
    pytest.importorskip(
        "hydra_plugins.hydra_joblib_launcher", reason="no third-party launcher: pip install hydra-joblib-launcher"
    )
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    subprocess.run(
        [sys.executable, "-m", "flowergen.train", "-m", *tiny_run, "model.beta=1,4", *parallel],
        cwd=tmp_path, env=process_environment, check=True, timeout=300,
    )  # fmt: skip
    assert [how_it_ended(sweep / str(number)) for number in range(2)] == ["finished", "finished"]
    assert command("train", *tiny_run, "model.beta=4", f"hydra.run.dir={alone}").returncode == 0
    assert_equal_weights(sweep / "1", alone)
    assert command("report", f"sweep={sweep}").returncode == 0


def test_jobs_take_the_config_folder_but_not_the_sweep(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    """A file that says MULTIRUN, in a folder of one's own: one job, which does not sweep."""
    for group, content in {
        "hparams_search": "hydra: {mode: MULTIRUN, sweeper: {params: {seed: 3}}}",
        "experiment": "name: x",
    }.items():
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    sweep = tmp_path / "sweep"
    done = command("train", *tiny_run, "--config-dir", "own", "hparams_search=mine", "experiment=mine", "debug=tiny",
                   f"hydra.sweep.dir={sweep}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((sweep / "0" / "config.yaml").read_text())
    assert (config["seed"], config["name"]) == (3, "x")
    assert sorted(path.name for path in sweep.glob("*/")) == ["0"]


def test_optuna_outlives_crashes_prunes_and_goes_on_after_a_kill(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Four trials given: one that finishes, one that cannot start, one that learns nothing, one whose sweeper is killed."""
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    storage = f"sqlite:///{sweep / 'optuna.db'}"
    study = optuna.create_study(storage=storage, study_name="flowergen", direction="maximize")
    good = {"model.optimizer.lr": "0.01", "model.reconstruction": "mse", "model.pixel_range": "[0,1]"}
    for change in ({}, {"model.reconstruction": "bce", "model.pixel_range": "[-1,1]"}, {"model.optimizer.lr": "1e-12"}, {}):
        study.enqueue_trial(good | change)
    arguments = [
        *tiny_run, "hydra/sweeper=optuna", "-m", "model.optimizer.lr=1e-12,0.01", "model.reconstruction=mse,bce",
        "model.pixel_range=[0,1],[-1,1]", "trainer.max_epochs=40", "callbacks.images.every_epochs=100",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_epochs=0",
        f"hydra.sweep.dir={sweep}", "sweep.skip_finished=true",
    ]  # fmt: skip
    started = (sweep / "3" / "config.yaml").exists
    status, output = stopped_when(started, signal.SIGKILL, arguments, process_environment, tmp_path)
    assert status == -signal.SIGKILL
    assert statuses(sweep) == ["finished", "failed", "pruned"], output
    assert not (sweep / "1").exists(), "it failed before it could write anything"
    assert how_it_ended(sweep / "2") == "Stopped: SIGTERM"
    with (sweep / "2" / "metrics.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["epoch"]) < 39

    refused = command("train", *arguments, "hydra.sweeper.direction=minimize")
    assert refused.returncode == 2
    assert "direction was maximize and is minimize" in refused.stderr
    done = command("train", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(sweep) == ["finished", "failed", "pruned", "failed", "finished"]
    trials = optuna.load_study(storage=storage, study_name="flowergen").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "COMPLETE"]
    assert trials[4].params == trials[3].params == good
    assert "fixed_params" in trials[4].system_attrs
    with (sweep / "0" / "metrics.csv").open() as file:
        assert trials[0].value == max(float(row["val/elbo"]) for row in csv.DictReader(file) if row["val/elbo"])
    assert "the best is trial 0: val/elbo" in done.stdout
    assert str(sweep / "0") in done.stdout
