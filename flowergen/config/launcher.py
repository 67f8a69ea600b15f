"""The launcher of sweeps: every job is a process of its own."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from flowergen.config.overrides import quoted_path
from flowergen.errors import UserError

log = logging.getLogger(__name__)


def register() -> None:
    """Make the launcher known to Hydra, which takes plugins from the package ``hydra_plugins`` only, registered or not."""
    plugins = Plugins.instance()
    plugins.register(ProcessLauncher)
    plugins.class_name_to_class["hydra_plugins.flowergen.ProcessLauncher"] = ProcessLauncher


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep one after the other, each as ``python -m flowergen.train`` with a run folder of its own.

    Hydra's own launcher runs them in one process: a crash ends the sweep, memory and global state leak from job to job, and
    the children of a multi-device job, started with the same arguments, would start the sweep again.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failed one is reported at the end, by an exception in its return value."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir.mkdir(parents=True, exist_ok=True)
        log.info(f"sweep of {len(job_overrides)} jobs into {sweep_dir}")
        results = [self._run(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        failed = [result for result in results if result.status is JobStatus.FAILED]
        log.info(f"{len(results) - len(failed)} of {len(results)} jobs finished; pictures and numbers: {sweep_dir}")
        log.info(f"compare them: tensorboard --logdir {sweep_dir}")
        return results

    def _run(self, number: int, overrides: list[str]) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        own = [override for override in overrides if not override.startswith(("hydra.sweep.", "hydra/", "hydra.launcher"))]
        log.info(f"job {number}: {' '.join(filter_overrides(own))}")
        command = [sys.executable, "-m", "flowergen.train", *own, f"hydra.run.dir={quoted_path(folder)}"]
        status = subprocess.run(command, check=False).returncode
        result = JobReturn(overrides=own, cfg=config, working_dir=str(folder), task_name="train")
        result.status = JobStatus.FAILED if status else JobStatus.COMPLETED
        result.return_value = status
        if status:
            log.info(f"job {number} failed with status {status}, the sweep goes on; its log: {folder / 'train.log'}")
            result.return_value = UserError(f"job {number} ({' '.join(filter_overrides(own))}) failed with status {status}")
        return result
