"""Launcher of sweeps: each job runs in a separate process."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from flowergen.errors import UserError
from flowergen.hydra_internals import register_plugin
from flowergen.runs.run_folder import RunFolder
from flowergen.sweeps.job_process import start_job, sweeping, terminated_on_exit
from flowergen.sweeps.optuna_sweeper import OptunaSweeper
from flowergen.sweeps.sweep_folder import SweepFolder, check_unchanged, job_overrides

log = logging.getLogger(__name__)


def register() -> None:
    """Register the launcher and the sweeper with Hydra."""
    for plugin in (ProcessLauncher, OptunaSweeper):
        register_plugin(plugin)


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep one after the other, each as ``python -m flowergen.train`` with its own run folder.

    Hydra's own launcher runs them in one process: a crash ends the sweep, memory and global state leak between jobs, and the
    child processes of a multi-device job, started with the same arguments, would start the sweep again.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs that have not finished; the return value of a failed job is an exception."""
        with sweeping(self.config, log.info) as sweep:
            jobs = [self._job(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
            for job in jobs:
                if job.run.config.exists():
                    check_unchanged(job.number, job.run, job.overrides)
            log.info(f"sweep of {len(jobs)} jobs into {sweep.path}")
            results = [self._run(job, sweep) for job in jobs]
        failed = [result for result in results if result.status is JobStatus.FAILED]
        log.info(f"{len(results) - len(failed)} of {len(results)} jobs finished; pictures and numbers: {sweep.path}")
        log.info(f"compare them: python -m flowergen.report {shlex.quote(f'sweep={sweep.path}')}")
        return results

    def _job(self, number: int, overrides: Sequence[str]) -> "_Job":
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        run = RunFolder(Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir))
        return _Job(number, job_overrides(overrides), run, config)

    def _run(self, job: "_Job", sweep: SweepFolder) -> JobReturn:
        shown = " ".join(filter_overrides(job.overrides))
        result = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=str(job.run.path), task_name="train")
        status = 0
        if job.run.exit() == "finished":
            log.info(f"job {job.number}: {shown} (already finished)")
        else:
            resume = job.run.config.exists()
            log.info(f"job {job.number}: {shown}{' (resumed)' if resume else ''}")
            with terminated_on_exit(start_job(self.config, job.overrides, job.run.path, resume)) as process:
                status = process.wait()
        sweep.record(job.number, job.run.path, job.overrides, "failed" if status else "finished", status)
        result.status, result.return_value = JobStatus.COMPLETED, status
        if status:
            log.info(f"job {job.number} failed with status {status}, the sweep continues; log: {job.run.path / 'train.log'}")
            result.status = JobStatus.FAILED
            result.return_value = UserError(f"job {job.number} ({shown}) failed with status {status}")
        return result


class _Job(NamedTuple):
    number: int
    overrides: list[str]
    run: RunFolder
    config: DictConfig
