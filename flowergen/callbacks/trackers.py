"""Loggers for Weights & Biases, MLflow and trackio. A tracker that fails does not end training."""

import logging
import os
import time
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from flowergen.errors import UserError, one_line

log = logging.getLogger(__name__)


class Tracker(Logger):
    """Logs to a run of a tracker: scalars, pictures and the settings of the training.

    The tracker's run is started before the first optimiser step. A later session with the same ``run_id`` continues it. After
    its first failure, a tracker is disabled until training is resumed.

    Args:
        run_name: display name of the run.
        run_id: identifies the run; the same in all its sessions.
        folder: the run folder.
        settings: plain values by dotted key, such as ``model.beta``.
        resumed: True if training continues from a checkpoint. If the tracker cannot be started, a new run is refused, but a
            resumed one continues without it.
    """

    title: ClassVar[str]

    def __init__(self, *, run_name: str, run_id: str, folder: str | Path, settings: dict[str, Any], resumed: bool):
        super().__init__()
        self.run_name, self.run_id, self.folder = run_name, run_id, Path(folder)
        self.settings, self.resumed = settings, resumed
        self._run: Any = None
        self._disabled = False

    @abstractmethod
    def start(self) -> Any:
        """Start the tracker's run, or continue it. May raise any exception, as may the methods below.

        Returns:
            The tracker's own object, the first argument of the methods below.
        """

    @abstractmethod
    def send_scalars(self, run: Any, metrics: dict[str, float], step: int) -> None:
        """Log values by name."""

    @abstractmethod
    def send_picture(self, run: Any, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a picture."""

    @abstractmethod
    def finish(self, run: Any, succeeded: bool) -> None:
        """End the tracker's run; False if training was stopped or failed."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run_name

    @property
    def version(self) -> str:
        """Id of the run."""
        return self.run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The tracker's own object, started if necessary; None if the tracker is disabled. Lightning reads it before training.

        Raises:
            UserError: the tracker cannot be started for a new run.
        """
        if self._run is None and not self._disabled:
            try:
                self._run = self.start()
            except Exception as error:  # trackers, networks and databases raise various exceptions
                if not self.resumed:
                    raise UserError(
                        f"{self.title} cannot be started ({_cause(error)}): correct that, or choose logger=default"
                    ) from error
                self._disable(error)
        return self._run

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``settings`` are logged when the tracker's run is started."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log scalars by name at ``optimizer_steps`` of the module, None for 0."""
        self._attempt(self.send_scalars, metrics, step or 0)

    @rank_zero_only
    def log_picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a picture, see ``PictureLogger``; its name is the same at every step."""
        self._attempt(self.send_picture, name, pixels, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the tracker's run; ``status`` is ``success``, or anything else if training was stopped or failed."""
        if self._run is not None:
            self._attempt(self.finish, status == "success")
            self._run = None

    def _attempt(self, method: Callable[..., None], *args: Any) -> None:
        run = self.experiment
        if run is None:
            return
        try:
            method(run, *args)
        except Exception as error:  # as in ``experiment``
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        # permanently: the libraries have already retried for minutes, and every later call would do the same
        self._run, self._disabled = None, True
        log.warning(f"{self.title} failed ({_cause(error)}): training continues without it until it is resumed")


def _cause(error: Exception) -> str:
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Wandb(Tracker):
    """Weights & Biases. Its files are in ``wandb/`` of the run folder.

    Args:
        project: project of W&B.
        entity: user or team; None for the default of the account.
        offline: write files only, without network and account.
        **run: arguments of ``Tracker``.
    """

    title = "W&B"

    def __init__(self, project: str, entity: str | None, offline: bool, **run: Any):
        super().__init__(**run)
        self.project, self.entity, self.offline = project, entity, offline

    def start(self) -> Any:
        """Start or continue the run with the id ``run_id``; its x axis is ``step``."""
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")  # seconds; by default it waits for its server indefinitely
        if self.offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # error reports need the network
        import wandb  # slow to import

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.run_name,
            id=self.run_id,
            config=self.settings,
            allow_val_change=True,
            dir=str(self.folder),
            mode="offline" if self.offline else None,  # None: WANDB_MODE, or else online
            resume=None if self.offline else "allow",
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")  # W&B's own steps must increase, but a resumed run repeats some
        return run

    def send_scalars(self, run: Any, metrics: dict[str, float], step: int) -> None:
        """Log a row."""
        run.log({**metrics, "step": step})

    def send_picture(self, run: Any, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a ``wandb.Image``."""
        import wandb

        run.log({name: wandb.Image(pixels), "step": step})

    def finish(self, run: Any, succeeded: bool) -> None:
        """Send or write the rest, and mark the run as finished or failed."""
        run.finish(exit_code=0 if succeeded else 1)


class Mlflow(Tracker):
    """MLflow. The run is found again by its tag ``flowergen.run``, as MLflow chooses the ids of its runs itself.

    Args:
        experiment_name: experiment of MLflow; created if it does not exist.
        tracking_uri: a server or database; None for the environment's ``MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in
            ``output_dir``, with pictures in ``mlflow/`` beside it.
        output_dir: folder of that database.
        **run: arguments of ``Tracker``.
    """

    title = "MLflow"
    tag = "flowergen.run"
    longest_value = 6000  # characters of a parameter
    most_params = 100  # in a request

    def __init__(self, experiment_name: str, tracking_uri: str | None, *, output_dir: str | Path, **run: Any):
        super().__init__(**run)
        self.experiment_name, self.output_dir = experiment_name, Path(output_dir)
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def start(self) -> Any:
        """Start or continue the run. Parameters that are already logged are kept, as MLflow allows no change."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # slow to import
        from mlflow.entities import Param

        uri, place = self.tracking_uri, None
        if uri is None:
            uri, place = f"sqlite:///{self.output_dir / 'mlflow.db'}", (self.output_dir / "mlflow").as_uri()
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(self.experiment_name)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment_name, place)
        runs = client.search_runs([experiment], f"tags.`{self.tag}` = '{self.run_id}'")
        run = runs[0] if runs else client.create_run(experiment, tags={self.tag: self.run_id}, run_name=self.run_name)
        self._mlflow_id = run.info.run_id
        client.update_run(self._mlflow_id, "RUNNING")
        new = [
            Param(key, str(value)[: self.longest_value]) for key, value in self.settings.items() if key not in run.data.params
        ]
        for first in range(0, len(new), self.most_params):
            client.log_batch(self._mlflow_id, params=new[first : first + self.most_params])
        return client

    def send_scalars(self, run: Any, metrics: dict[str, float], step: int) -> None:
        """Log all in one request."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        run.log_batch(self._mlflow_id, metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()])

    def send_picture(self, run: Any, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log an image of a step."""
        run.log_image(self._mlflow_id, pixels, key=name, step=step)

    def finish(self, run: Any, succeeded: bool) -> None:
        """Set the status of the run."""
        run.set_terminated(self._mlflow_id, "FINISHED" if succeeded else "FAILED")


class Trackio(Tracker):
    """trackio. Its data are on this machine, in ``TRACKIO_DIR``, unless a Space of Hugging Face is given.

    trackio finds runs by their names, so part of ``run_id`` belongs to the name.

    Args:
        project: project of trackio.
        space_id: ``OWNER/NAME`` of a Space, created if it does not exist; None for this machine.
        private: whether a new Space is private.
        **run: arguments of ``Tracker``.
    """

    title = "trackio"

    def __init__(self, project: str, space_id: str | None, private: bool, **run: Any):
        super().__init__(**run)
        self.project, self.space_id, self.private = project, space_id, private

    def start(self) -> Any:
        """Start or continue the run."""
        import trackio  # slow to import

        return trackio.init(
            project=self.project,
            name=f"{self.run_name}-{self.run_id[:6]}",
            config=self.settings,
            resume="allow",
            space_id=self.space_id,
            private=self.private,
        )

    def send_scalars(self, run: Any, metrics: dict[str, float], step: int) -> None:
        """Log a row."""
        run.log(metrics, step=step)

    def send_picture(self, run: Any, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a ``trackio.Image``."""
        import trackio

        run.log({name: trackio.Image(pixels)}, step=step)

    def finish(self, run: Any, succeeded: bool) -> None:
        """Write or send the rest."""
        run.finish()
