from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flowergen.app import train_command
from flowergen.app.train_command import prepare_train
from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder
from flowergen.sweeps.optuna_sweeper import OptunaSweeper, read_metric, search_space, trial_overrides

WRONG = {
    "model.beta=interval(-1,1)": r"model\.beta=-1\.0 must be at least 0",
    "model.beta=tag(log,interval(0,1))": "a log interval above 0",
    "model.beta=interval(2,1)": "the second end of an interval must be higher",
    "model.optimizer.lr=interval(1,1000)": "at most 100",
    "model.beta=choice(1,-1)": "must be at least 0",
    "hydra.sweeper.direction=up": r"hydra\.sweeper\.direction=up must be maximize or minimize",
    "hydra.sweeper.n_trials=0": r"hydra\.sweeper\.n_trials=0 must be from 1",
    "hydra.sweeper.pruner.n_warmup_epochs=-1": r"hydra\.sweeper\.pruner\.n_warmup_epochs=-1 must be at least 0",
}


@pytest.mark.parametrize(("override", "words"), WRONG.items())
def test_a_wrong_search_is_refused_before_anything_is_made(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        prepare_train(["hparams_search=beta_optuna", override, f"paths.output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_search_needs_something_to_search_and_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to search"):
        prepare_train(["-m", "hydra/sweeper=optuna", f"paths.output_dir={tmp_path}"])
    monkeypatch.setattr(train_command, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install optuna"):
        prepare_train(["hparams_search=beta_optuna", f"paths.output_dir={tmp_path}"])


def test_the_file_is_what_it_says(tmp_path: Path) -> None:
    prepared = prepare_train(["hparams_search=beta_optuna", "model.beta=2", f"paths.output_dir={tmp_path}"])
    overrides = [line for line in prepared if line.startswith("model.")]
    assert overrides == ["model.optimizer.lr=tag(log, interval(1e-4, 1e-2))", "model.beta=2"]
    assert search_space(overrides) == {"model.optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True)}


def test_the_space_in_hydras_grammar() -> None:
    space = search_space([
        "a=interval(0,1)", "b=int(interval(4,9))", "c=x,y", "d=choice([1,2],[3])", "e=range(1,8,3)", "f=range(0.5,2,0.5)", "g=1"
    ])  # fmt: skip
    assert space == {
        "a": FloatDistribution(0, 1),
        "b": IntDistribution(4, 9),
        "c": CategoricalDistribution(["x", "y"]),
        "d": CategoricalDistribution(["[1,2]", "[3]"]),
        "e": IntDistribution(1, 7, step=3),
        "f": FloatDistribution(0.5, 1.5, step=0.5),
    }


def test_a_table_is_read_while_it_is_written(tmp_path: Path) -> None:
    """Rows of the training have no value; half a number is no number."""
    run = RunFolder(tmp_path)
    assert read_metric(run, "val/elbo") == {}
    run.metrics.write_text("epoch,step,train/loss,val/elbo\r\n0,3,1.5,\r\n0,8,,-20.5\r\n1,16,,nan\r\n2,24,,-1")
    values = read_metric(run, "val/elbo")
    assert values[0] == -20.5
    assert values.keys() == {0, 1}
    assert read_metric(run, "val/elb") == {}


def test_a_trial_that_ends_before_it_is_stopped_is_worth_all_of_its_epochs(tmp_path: Path) -> None:
    run, trial, values = RunFolder(tmp_path), Mock(), {}
    trial.should_prune.side_effect = [True, False]
    run.metrics.write_text("epoch,step,val/elbo\n0,8,-20.5\n1,16,-10.5\n")
    sweeper = OptunaSweeper("val/elbo", "maximize", 1, 0, DictConfig({}), None)
    assert sweeper._report(trial, run, values)
    assert values == {0: -20.5, 1: -10.5}
    assert not sweeper._report(trial, run, values), "an epoch is reported once"


def test_a_trial_killed_while_its_values_were_chosen_is_not_in_the_way() -> None:
    assert trial_overrides(["a=1,2", "b=1,2", "c=3"], {"a": "2"}) == ["a=2", "b=1,2", "c=3"]
