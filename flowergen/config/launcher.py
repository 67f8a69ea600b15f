"""The launcher of sweeps: every job is a process of its own."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from flowergen.config.job_process import saying_how_to_go_on, start_job, stopped_with_us
from flowergen.config.optuna_sweeper import OptunaSweeper
from flowergen.config.run_folder import RunFolder
from flowergen.config.sweep_folder import SweepFolder, check_unchanged, job_overrides
from flowergen.errors import UserError

log = logging.getLogger(__name__)


def register() -> None:
    """Make our plugins known to Hydra, which takes them from the package ``hydra_plugins`` only, registered or not."""
    plugins = Plugins.instance()
    for plugin in (ProcessLauncher, OptunaSweeper):
        plugins.register(plugin)
        plugins.class_name_to_class[f"hydra_plugins.flowergen.{plugin.__name__}"] = plugin


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep one after the other, each as ``python -m flowergen.train`` with a run folder of its own.

    Hydra's own launcher runs them in one process: a crash ends the sweep, memory and global state leak from job to job, and
    the children of a multi-device job, started with the same arguments, would start the sweep again.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs but those that have finished; a failed one is reported at the end, by an exception in its return value."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep = SweepFolder(str(self.config.hydra.sweep.dir))
        sweep.path.mkdir(parents=True, exist_ok=True)
        with sweep.locked(), saying_how_to_go_on(log.info):
            jobs = [self._job(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
            for job in jobs:
                run = RunFolder(job.working_dir)
                if run.config.exists():
                    check_unchanged(job.cfg.hydra.job.num, run, job.overrides)
            log.info(f"sweep of {len(jobs)} jobs into {sweep.path}")
            for job in jobs:
                self._run(job, sweep)
        failed = [job for job in jobs if job.status is JobStatus.FAILED]
        log.info(f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished; pictures and numbers: {sweep.path}")
        log.info(f"compare them: tensorboard --logdir {sweep.path}")
        return jobs

    def _job(self, number: int, overrides: Sequence[str]) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        return JobReturn(overrides=job_overrides(overrides), cfg=config, working_dir=str(folder.absolute()), task_name="train")

    def _run(self, job: JobReturn, sweep: SweepFolder) -> None:
        number, run = job.cfg.hydra.job.num, RunFolder(job.working_dir)
        shown = " ".join(filter_overrides(job.overrides))
        status = 0
        if run.exit() == "finished":
            log.info(f"job {number}: {shown} has finished already")
        else:
            resume = run.config.exists()
            log.info(f"job {number}: {shown}{', going on' if resume else ''}")
            with stopped_with_us(start_job(self.config, job.overrides, run.path, resume)) as process:
                status = process.wait()
        sweep.record(number, run.path, job.overrides, "failed" if status else "finished", status)
        job.status, job.return_value = JobStatus.COMPLETED, status
        if status:
            log.info(f"job {number} failed with status {status}, the sweep goes on; its log: {run.path / 'train.log'}")
            job.status = JobStatus.FAILED
            job.return_value = UserError(f"job {number} ({shown}) failed with status {status}")
