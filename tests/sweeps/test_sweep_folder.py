from pathlib import Path

import pytest
import yaml

from flowergen.app.train_command import prepare_train
from flowergen.config import conf_dir
from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder
from flowergen.sweeps.sweep_folder import SweepFolder, check_unchanged, job_overrides


def swept(arguments: list[str]) -> list[str]:
    """What is left of a command line for Hydra's sweeper, without folders."""
    return [line for line in prepare_train(arguments)[1:] if "=" in line and not line.startswith(("hydra.", "paths."))]


@pytest.mark.parametrize("path", sorted((Path(conf_dir()) / "hparams_search").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_search_says_how_to_sweep_and_nothing_else(path: Path) -> None:
    """Its jobs do not read the file: any other key in it would be lost."""
    assert path.read_text().startswith("# @package _global_\n")
    content = yaml.safe_load(path.read_text())
    assert content.keys() <= {"defaults", "hydra"}
    assert all(next(iter(line)).startswith("override /hydra/") for line in content.get("defaults", []))


def test_a_search_is_a_sweep_and_the_command_line_wins(tmp_path: Path) -> None:
    output = f"paths.output_dir={tmp_path}"
    assert swept(["hparams_search=beta", output]) == ["model.beta=0.25,0.5,1,2,4", "hparams_search=beta"]
    assert swept(["hparams_search=beta", "model.beta=1,8", output]) == ["hparams_search=beta", "model.beta=1,8"]
    assert swept(["-m", "++model.beta=1", "hparams_search=beta", output]) == ["++model.beta=1", "hparams_search=beta"]


def test_values_from_a_file_are_checked_like_typed_ones(tmp_path: Path) -> None:
    (tmp_path / "hparams_search").mkdir()
    (tmp_path / "hparams_search" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {model.beta: '1,-1'}}}\n"
    )
    with pytest.raises(UserError, match=r"model\.beta=-1 must be at least 0"):
        prepare_train(["--config-dir", str(tmp_path), "hparams_search=mine", f"paths.output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "seed=1,2", "sweep.skip_finished=true"], r"needs hydra\.sweep\.dir"),
        (["sweep.skip_finished=true"], "add -m"),
        (["hparams_search=beta,beta_optuna"], "one name"),
        (["hparams_search=bta"], "did you mean beta"),
        (["-m", "model.beta=interval(0,1)"], "one by one"),
        (["-m", "seed=range(3,3)"], "no value"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_made(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        prepare_train([*arguments, f"paths.output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_intervals_are_left_to_sweepers_of_others(tmp_path: Path) -> None:
    """Both ends are checked like other values."""
    other = ["-m", "hydra.sweeper._target_=hydra_plugins.other.OtherSweeper", f"paths.output_dir={tmp_path}"]
    assert "model.beta=interval(0.1,1)" in prepare_train([*other, "model.beta=interval(0.1,1)"])
    with pytest.raises(UserError, match=r"model\.beta=-1.0 must be at least 0"):
        prepare_train([*other, "model.beta=interval(-1,1)"])


def test_jobs_do_not_inherit_the_sweep() -> None:
    lines = ["hparams_search=beta", "seed=1", "sweep.skip_finished=true", "+hydra.x=1", "hydra/sweeper=optuna", "model.beta=1"]
    assert job_overrides(lines) == ["seed=1", "model.beta=1"]


def test_a_folder_remembers_its_jobs(tmp_path: Path) -> None:
    """A job that is run again replaces its entry; one that left nothing but its entry makes the folder a sweep's."""
    sweep = SweepFolder(tmp_path)
    assert not sweep.has_jobs()
    sweep.record(1, tmp_path / "1", ["seed=1"], "failed", 2)
    sweep.record(0, tmp_path / "0", ["seed=0"], "finished", 0)
    sweep.record(1, tmp_path / "1", ["seed=1"], "finished", 0)
    assert yaml.safe_load(sweep.jobs.read_text()) == [
        {"number": n, "folder": str(n), "overrides": [f"seed={n}"], "status": "finished", "exit_code": 0} for n in range(2)
    ]
    assert sweep.has_jobs()
    with pytest.raises(UserError, match=r"skip_finished=true, or"):
        prepare_train(["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
    prepare_train(["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}", "sweep.skip_finished=true"])


def test_a_continued_job_may_have_pinned_a_repository_and_kept_what_its_recipe_was(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.store({}, ["autoencoder='hub:a/b@0123'", "++model.channels=[8]", "seed=1"])
    check_unchanged(1, run, ["autoencoder=hub:a/b", "seed=1"])
    for changes in (["autoencoder=hub:a/c", "seed=1"], ["autoencoder=hub:a/b", "++model.channels=[4]", "seed=1"]):
        with pytest.raises(UserError, match=r"job 1 .* but now has (autoencoder=hub:a/c|model.channels=\[4\])"):
            check_unchanged(1, run, changes)


def test_a_continued_job_keeps_its_values_and_is_nobody_elses(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.store({}, ["hydra.searchpath=['file:///x']", "paths.cache_dir=/old", "model.beta=4", "seed=1"])
    check_unchanged(1, run, ["seed=1", "++model.beta=4", "paths.cache_dir=/new"])
    with pytest.raises(UserError, match=r"job 1 .* model\.beta=4, but now has model\.beta=8"):
        check_unchanged(1, run, ["model.beta=8", "seed=1"])
    with pytest.raises(UserError, match="no seed"):
        check_unchanged(1, run, ["model.beta=4"])
    with run.locked(), pytest.raises(UserError, match="another process is training"):
        check_unchanged(1, run, ["seed=1", "model.beta=4"])


@pytest.mark.parametrize("content", [b"\xff", b"{", b"- a\n- {number: x}\n", b"", b"text"])
def test_a_damaged_list_of_jobs_does_not_end_a_sweep(content: bytes, tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.jobs.write_bytes(content)
    sweep.record(1, tmp_path / "1", ["model.beta=2"], "finished", 0)
    assert [job["number"] for job in yaml.safe_load(sweep.jobs.read_text())] == [1]
