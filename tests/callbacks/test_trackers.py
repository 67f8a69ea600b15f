"""Loggers of trackers: what reaches them, over a kill too, and what happens without them. No network is used."""

import json
import re
import shutil
import sqlite3
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from flowergen.app import train_command
from flowergen.app.train_command import checked, prepare_train
from flowergen.callbacks.trackers import Tracker
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.conftest import TINY_RUN, run_command
from tests.test_train import KILLABLE, killed

LOGGERS = {
    "wandb": ["logger=wandb", "logger.wandb.offline=true"],
    "mlflow": ["logger=mlflow"],
    "trackio": ["logger=trackio"],
}
THREE_EPOCHS = [*TINY_RUN, *KILLABLE, "callbacks.images.every_epochs=1", "name=flowers"]  # of 16 steps each


class Broken(Exception):
    """What a tracker raises in these tests."""


class Recorder(Tracker):
    """Keeps what it is sent; fails in the calls whose names it is given."""

    title = "Recorder"

    def __init__(self, *fails_in: str, resumed: bool = False):
        super().__init__(run_name="run", run_id="id", folder="", settings={"model.beta": 1.0}, resumed=resumed)
        self.fails_in, self.sent = fails_in, list[Any]()

    def start(self) -> Any:
        return self._record("start")

    def send_scalars(self, run: Any, metrics: dict[str, float], step: int) -> None:
        self._record("scalars", metrics, step)

    def send_picture(self, run: Any, name: str, pixels: Any, step: int) -> None:
        self._record("picture", name, pixels.shape, pixels.dtype.name, step)

    def finish(self, run: Any, succeeded: bool) -> None:
        self._record("finish", succeeded)

    def _record(self, *what: Any) -> Any:
        self.sent.append(what)
        if what[0] in self.fails_in:
            raise Broken("the server\nis gone")
        return self


def skip_without(name: str) -> None:
    """MLflow and trackio are installed by uv alone, as they forbid pinned versions of importlib-metadata and Pillow."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'flowergen[{name}]'")


@pytest.fixture
def tracker_environment(tmp_path: Path, process_environment: dict[str, str]) -> dict[str, str]:
    """Trackers that write into the test's folder, and nothing of the user's own."""
    kept = {key: value for key, value in process_environment.items() if not key.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    home = {"HOME": str(tmp_path / "home"), "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_ERROR_REPORTING": "false"}
    return kept | home | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


# ---- What reaches a tracker ------------------------------------------------------------------------------------------
class PicturesOnly(Logger):
    """A logger of one's own, of no class that the package knows."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, tuple[int, ...], str, int]] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_picture(self, name: str, pixels: Any, step: int) -> None:
        self.pictures.append((name, pixels.shape, pixels.dtype.name, step))


def trained(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, *loggers: Logger) -> RunFolder:
    """Train for an epoch of 8 steps, with these loggers in place of the config's."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    config = resolve(checked([*TINY_RUN, "trainer.max_epochs=1", "callbacks.loss_plot=null", "callbacks.run_page=null"])[0])
    run = RunFolder(tmp_path / "run")
    data = build_datamodule(config)
    data.setup()
    trainer = build_trainer(config, run, None)
    trainer.loggers = list(loggers)
    trainer.fit(build_module(config, len(data.class_names)), datamodule=data)
    return run


def test_any_logger_that_takes_pictures_gets_them(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pixels of the PNG files; a tracker also gets the speed, which metrics.csv leaves out."""
    own, tracker = PicturesOnly(), Recorder()
    run = trained(tmp_path, cache_dir, monkeypatch, own, tracker)
    shapes = {
        name: np.asarray(Image.open(run.images / f"{name}_epoch_0001.png")).shape for name in ("reconstruction", "generated")
    }
    assert own.pictures == [(name, shape, "uint8", 8) for name, shape in shapes.items()]
    assert [what[1:] for what in tracker.sent if what[0] == "picture"] == own.pictures
    names = {name for what in tracker.sent if what[0] == "scalars" for name in what[1]}
    assert {"train/loss", "train_epoch/loss", "val/elbo", "perf/images_per_second", "epoch"} <= names
    assert tracker.sent[0] == ("start",)
    assert tracker.sent[-1] == ("finish", True)


def stored_by_wandb(run: Path, folder: Path) -> None:
    """Two sessions with one id, offline: their files lie in the run folder."""
    sessions = sorted((run / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    assert {session.name.rpartition("-")[2] for session in sessions} == {(run / "tracker_id").read_text()}
    (stored,) = sessions[1].glob("*.wandb")
    content = stored.read_bytes()
    for words in (b"train_epoch/loss", b"val/elbo", b"model.beta", b"flowers", run.name.encode()):
        assert words in content, words
    for name in ("generated", "reconstruction"):
        pictures = list((sessions[1] / "files" / "media" / "images").glob(f"{name}_*.png"))
        assert len(pictures) == 2, "of the second and third epoch"
        assert {np.asarray(Image.open(path)).tobytes() for path in pictures} == {
            np.asarray(Image.open(run / "images" / f"{name}_epoch_{epoch:04d}.png")).tobytes() for epoch in (2, 3)
        }


def stored_by_mlflow(run: Path, folder: Path) -> None:
    """One run, with everything of both sessions."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("flowers")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", run.name)
    assert found.data.params["model.beta"] == "1.0"
    assert "paths.output_dir" not in found.data.params
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "val/elbo")] == [16, 32, 48]
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")]
    assert sorted(set(steps)) == list(range(2, 49, 2))
    drawn = {path.name for path in (folder / "outputs" / "mlflow").rglob("*.png")}
    for name in ("generated", "reconstruction"):
        assert sorted(
            int(re.split("step.", picture)[1].split("+")[0].split("%")[0]) for picture in drawn if name in picture
        ) == [16, 32, 48]


def stored_by_trackio(run: Path, folder: Path) -> None:
    """One run; what it had not written yet when it was killed is missing."""
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, *_ in rows} == {f"{run.name}-{(run / 'tracker_id').read_text()[:6]}"}
    steps: dict[str, list[int]] = {}
    for _, step, metrics in rows:
        for name in json.loads(metrics):
            steps.setdefault(name, []).append(step)
    for name in ("val/elbo", "generated", "reconstruction"):
        assert steps[name][-2:] == [32, 48]
    assert len(list((folder / "trackio").rglob("*.png"))) == 6


STORED = {"wandb": stored_by_wandb, "mlflow": stored_by_mlflow, "trackio": stored_by_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGERS)
def test_a_killed_run_goes_on_in_the_same_run_of_its_tracker(
    name: str, tmp_path: Path, tracker_environment: dict[str, str]
) -> None:
    """With scalars and pictures, offline; TensorBoard's files and metrics.csv are there as ever."""
    skip_without(name)
    run = tmp_path / "outputs" / "flowers" / "garden"
    run.parent.mkdir(parents=True)
    killed(run, "training step", 20, [*THREE_EPOCHS, *LOGGERS[name], f"paths.output_dir={tmp_path / 'outputs'}"],
           tracker_environment)  # fmt: skip
    done = run_command("train", f"resume={run}", folder=tmp_path, environment=tracker_environment)
    assert done.returncode == 0, done.stderr
    assert "training continues without it" not in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "metrics.csv").is_file()
    assert list((run / "tensorboard").iterdir())
    STORED[name](run, tmp_path)


# ---- Without a tracker -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is made; a folder of the package's name is no package."""
    folder = SimpleNamespace(origin=None)
    for spec in (None, folder):
        monkeypatch.setattr(train_command, "find_spec", lambda package, spec=spec: spec)
        with pytest.raises(UserError, match=rf"^logger={name} needs {name}: pip install 'flowergen\[{name}\]'$"):
            prepare_train([f"logger={name}", f"paths.output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("logger.wandb.offlin=true", r"there is no key logger\.wandb\.offlin: did you mean logger\.wandb\.offline\?"),
        ("logger.wandb.offline=yess", r"logger\.wandb\.offline=yess must be true or false"),
        ("logger.wandb.project=''", r"logger\.wandb\.project= must not be empty"),
    ],
)
def test_a_misspelt_option_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked(["logger=wandb", override])


# ---- A tracker that fails --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["scalars", "picture", "finish"])
def test_a_tracker_that_fails_ends_no_training(
    where: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, and it is not asked again."""
    tracker = Recorder(where)
    run = trained(tmp_path, cache_dir, monkeypatch, tracker)
    assert (run.checkpoints / "last.ckpt").is_file()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("flowergen")] == [
        "Recorder failed (Broken: the server is gone): training continues without it until it is resumed"
    ]
    assert tracker.sent[-1][0] == where
    assert [what[0] for what in tracker.sent].count(where) == 1


def test_a_tracker_that_cannot_start_is_refused_but_holds_up_no_resumed_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"^Recorder cannot be started \(Broken: the server is gone\): .*logger=default$"):
        _ = Recorder("start").experiment
    assert caplog.messages == []
    tracker = Recorder("start", resumed=True)
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.log_picture("b", np.zeros((2, 2, 3), np.uint8), 1)
    tracker.finalize("success")
    assert tracker.sent == [("start",)]
    assert len(caplog.messages) == 1


GONE = {  # nothing listens there
    "wandb": (["logger=wandb"], {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}),
    "mlflow": (["logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9"], {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GONE)
def test_a_server_that_is_gone_is_one_line(name: str, tmp_path: Path, tracker_environment: dict[str, str]) -> None:
    """A new run is refused before it trains; one that has begun goes on."""
    skip_without(name)
    gone, variables = GONE[name]
    train = partial(run_command, "train", folder=tmp_path, environment=tracker_environment | variables)
    run = tmp_path / "run"
    options = [*TINY_RUN, "trainer.max_epochs=1", f"hydra.run.dir={run}"]
    refused = train(*options, *gone)
    assert refused.returncode == 2
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: (W&B|MLflow) cannot be started \((CommError|MlflowException): .*\): .* logger=default$", error)
    assert "Traceback" not in refused.stderr
    assert not list(run.glob("checkpoints/*"))
    begun = train(*options)
    assert begun.returncode == 0, begun.stderr
    resumed = train(f"resume={run}", "trainer.max_epochs=2", *gone)
    assert resumed.returncode == 0, resumed.stderr
    assert len(re.findall(r"(W&B|MLflow) failed \(\w+: .*: training continues without it", resumed.stderr)) == 1


def test_the_run_of_a_tracker_is_that_of_its_folder(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a sweep is named after its sweep too; a copy of the folder at another place is the same run."""
    config = resolve(checked(["logger=wandb", "name=flowers"])[0])
    run = RunFolder(tmp_path / "2026-11-29_12-00-00" / "3")
    run.path.mkdir(parents=True)

    def tracker(folder: RunFolder) -> Any:
        return next(logger for logger in build_trainer(config, folder, None).loggers if isinstance(logger, Tracker))

    first = tracker(run)
    assert (first.name, first.project) == ("2026-11-29_12-00-00_3", "flowers")
    shutil.copytree(run.path, tmp_path / "moved")
    assert tracker(RunFolder(tmp_path / "moved")).version == first.version == tracker(run).version
    other = RunFolder(tmp_path / "other")
    other.path.mkdir()
    assert tracker(other).version != first.version
