"""Sweeper behind ``hparams_search=beta_optuna``: Optuna chooses the values, and each trial runs in a separate process."""

import csv
import io
import logging
import math
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flowergen.config.overrides import parse
from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder
from flowergen.sweeps.job_process import start_job, stop, sweeping, terminated_on_exit
from flowergen.sweeps.sweep_folder import Status, job_overrides

if TYPE_CHECKING:  # an optional package that takes half a second to import
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MANY_FAILURES = 3  # failed trials before any has ended: the error is common to all


class OptunaSweeper(Sweeper):
    """Searches with Optuna: TPE chooses the values, and trials worse than the median of the others are pruned.

    Intervals (``tag(log, interval(a, b))``, ``int(interval(a, b))``), ``range(...)`` and choices are searched; all other
    overrides apply to every trial. The state is stored in ``optuna.db`` in the sweep folder, so a killed search can continue.

    The arguments are described in ``conf/hydra/sweeper/optuna.yaml``; ``params`` is null here, as ``prepare_train`` has added
    them to the overrides.
    """

    def __init__(
        self,
        metric: str,
        direction: Literal["maximize", "minimize"],
        n_trials: int,
        seed: int,
        pruner: DictConfig,
        params: None,
    ):
        self.metric, self.n_trials, self.seed, self.pruner = metric, n_trials, seed, pruner
        self.direction: Literal["maximize", "minimize"] = direction
        self.best_of = max if direction == "maximize" else min

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config: DictConfig = config

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until enough have finished or been pruned, and report the best."""
        from optuna import samplers
        from optuna.trial import TrialState

        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        with sweeping(self.config, log.info) as self.folder:
            overrides = job_overrides(arguments)
            study, space = self._study(overrides), search_space(overrides)
            failures = 0
            while (done := len(study.get_trials(deepcopy=False, states=ended))) < self.n_trials:
                if failures >= (self.n_trials if done else MANY_FAILURES):
                    raise UserError(f"{failures} trials failed; their logs: {self.folder.path}/*/train.log")
                study.sampler = samplers.TPESampler(seed=self.seed + len(study.trials))  # a restart must not repeat its draws
                trial = study.ask(space)
                log.info(f"trial {trial.number}, {done} of {self.n_trials} done: {_shown(trial.params)}")
                failures += not self._run(study, trial, trial_overrides(overrides, trial.params))
        self._log_summary(study)

    def _study(self, overrides: Sequence[str]) -> "Study":
        """Create a study, or load the folder's and enqueue the trials that its last session left unfinished."""
        import optuna

        if set("?%") & set(str(self.folder.optuna)):  # special characters in a database URL
            raise UserError(f"{self.folder.path}: give a hydra.sweep.dir without ? and %")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.folder.has_jobs() and not self.folder.optuna.exists():
            raise UserError(f"{self.folder.path} contains a sweep without Optuna: choose another hydra.sweep.dir")
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder.optuna}",
            study_name="flowergen",
            direction=self.direction,
            pruner=optuna.pruners.MedianPruner(self.pruner.n_startup_trials, self.pruner.n_warmup_epochs),
            load_if_exists=True,
        )
        kept = sorted(line for line in overrides if not line.startswith("paths."))  # folders may change
        search = {"metric": self.metric, "direction": self.direction, "overrides": kept}
        before = study.user_attrs.get("search", search)
        if before != search:
            changed = [f"{key} was {before[key]} and is {search[key]}" for key in search if before[key] != search[key]]
            raise UserError(f"{self.folder.path}: {changed[0]}; a continued search must keep its settings")
        study.set_user_attr("search", search)
        # the folder is locked, so the process that ran these trials has ended
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            run = RunFolder(self.folder.path / str(trial.number))
            if run.path.exists():
                with run.locked():  # fails if the trial's process is still running
                    pass
            log.info(f"trial {trial.number} was interrupted: its values are tried again")
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            self.folder.record(trial.number, run.path, trial_overrides(overrides, trial.params), "failed", None)
        return study

    def _run(self, study: "Study", trial: "Trial", overrides: Sequence[str]) -> bool:
        """Run and monitor one trial; return True if it finished or was pruned."""
        from optuna.trial import TrialState

        run = RunFolder(self.folder.path / str(trial.number))
        values: dict[int, float] = {}
        pruned = False
        with terminated_on_exit(start_job(self.config, overrides, run.path)) as process:
            while process.poll() is None and not pruned:
                time.sleep(POLL_SECONDS)
                pruned = self._report(trial, run, values) and process.poll() is None
            if pruned:
                log.info(f"trial {trial.number} is pruned after epoch {max(values)}")
                stop(process)
                pruned = process.returncode != 0  # otherwise it finished after all
        self._report(trial, run, values)
        finite = [value for value in values.values() if math.isfinite(value)]
        status: Status = "pruned" if pruned else "finished" if process.returncode == 0 and finite else "failed"
        if status == "finished":
            study.tell(trial, self.best_of(finite))
            log.info(f"trial {trial.number}: {self.metric} {self.best_of(finite):.6g}")
        else:
            study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        if status == "failed":
            why = f"status {process.returncode}" if process.returncode else f"{self.metric} was never finite"
            log.info(f"trial {trial.number} failed ({why}), the search continues; its log: {run.path / 'train.log'}")
        self.folder.record(trial.number, run.path, overrides, status, process.returncode)
        if process.returncode == 0 and not values:  # nor would another trial have it
            raise UserError(f"{run.metrics} has no column {self.metric}: hydra.sweeper.metric must be one of its columns")
        return status != "failed"

    def _report(self, trial: "Trial", run: RunFolder, values: dict[int, float]) -> bool:
        """Report new epochs to Optuna; return True if the trial should be pruned."""
        stop_it = False
        for epoch, value in read_metric(run, self.metric).items():
            if epoch not in values:
                values[epoch] = value
                trial.report(value, epoch)
                stop_it = trial.should_prune() or stop_it
        return stop_it

    def _log_summary(self, study: "Study") -> None:
        from optuna.trial import TrialState

        count = {state: len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState}
        numbers = f"{count[TrialState.COMPLETE]} finished, {count[TrialState.PRUNED]} pruned, {count[TrialState.FAIL]} failed"
        log.info(f"{len(study.trials)} trials: {numbers}; pictures and numbers: {self.folder.path}")
        if count[TrialState.COMPLETE]:
            best = study.best_trial
            log.info(f"the best is trial {best.number}: {self.metric} {best.value:.6g} with {_shown(best.params)}")
            log.info(f"its run folder: {self.folder.path / str(best.number)}")
        log.info(f"compare them: python -m flowergen.report {shlex.quote(f'sweep={self.folder.path}')}")


def search_space(overrides: Sequence[str]) -> dict[str, "BaseDistribution"]:
    """Return Optuna's distributions by key; choices stay in Hydra's grammar."""
    return {o.get_key_element(): _distribution(o) for o in parse(overrides) if o.is_sweep_override()}


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    low: Any
    high: Any
    options: dict[str, Any]
    if isinstance(sweep, IntervalSweep):
        low, high, options = sweep.start, sweep.end, {"log": "log" in sweep.tags}
    elif isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        low, high, options = values[0], values[-1], {"step": abs(sweep.step)}
    else:
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    return (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, **options)


def trial_overrides(overrides: Sequence[str], params: dict[str, Any]) -> list[str]:
    """Return a trial's overrides, with the chosen values in place of the sweeps.

    >>> trial_overrides(["seed=1", "model.beta=interval(0,1)"], {"model.beta": 0.5})
    ['seed=1', 'model.beta=0.5']
    """
    chosen = {key: f"{key}={value}" for key, value in params.items()}  # incomplete if killed while choosing
    return [chosen.get(override.get_key_element(), str(override.input_line)) for override in parse(overrides)]


def read_metric(run: RunFolder, metric: str) -> dict[int, float]:
    """Read a column of ``metrics.csv`` by epoch, possibly during the run; empty if it does not exist yet."""
    try:
        text = run.metrics.read_text()
    except OSError:
        return {}
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    return {int(float(row["epoch"])): float(row[metric]) for row in csv.DictReader(io.StringIO(whole)) if row.get(metric)}


def _shown(params: dict[str, Any]) -> str:
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items())
