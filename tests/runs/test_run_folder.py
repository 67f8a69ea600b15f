import errno
import json
import os
from pathlib import Path

import pytest

from flowergen.errors import TrainingEnded, UserError
from flowergen.modules.pretrained_weights import MissingWeights
from flowergen.runs.provenance import Provenance
from flowergen.runs.run_folder import RunFolder, create_unused_folder, find_run


def test_two_processes_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = [create_unused_folder(tmp_path / "vae" / "2026-01-01_00-00-00") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() for folder in folders)


def test_a_run_is_named_by_its_folder_or_a_checkpoint_in_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.store({"seed": 0}, ["seed=0"])
    run.checkpoints.mkdir()
    checkpoint = run.checkpoints / "best.ckpt"
    checkpoint.touch()
    assert find_run(tmp_path)[1] is None
    assert find_run(checkpoint)[0].path == tmp_path
    assert find_run(checkpoint)[1] == checkpoint


@pytest.mark.parametrize("what", ["missing", "not a run", "a picture"])
def test_what_is_no_run_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = {"missing": tmp_path / "typo", "not a run": tmp_path, "a picture": tmp_path / "a.jpg"}[what]
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match="resume="):
        find_run(path, "resume")


def test_provenance_says_how_a_session_ended_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def fail() -> None:
        with Provenance(run, seed=3):
            assert json.loads(run.provenance.read_text())["exit"] == "running, or killed"
            raise UserError("no pictures")

    with pytest.raises(UserError, match="no pictures"):
        fail()
    with Provenance(run, seed=3):
        pass
    record = json.loads(run.provenance.read_text())
    assert record["exit"] == "finished"
    assert record["earlier"][0]["exit"] == "UserError: no pictures"
    assert {"command", "seed", "start", "end", "git", "versions", "hardware"} <= record.keys()


def test_a_refusal_leaves_the_record_and_what_became_of_the_training_does_not(tmp_path: Path) -> None:
    """A finished run that goes on for more epochs and diverges has not finished."""
    run = RunFolder(tmp_path)
    with Provenance(run, seed=3):
        pass
    for error, exit_ in ((UserError("all epochs are done"), "finished"), (TrainingEnded("step 7"), "TrainingEnded: step 7")):
        with pytest.raises(UserError), Provenance(run, seed=3):
            raise error
        assert run.exit() == exit_


def test_a_refused_resume_leaves_config_and_overrides_as_they_were(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.store({"data": {"root": "/Blüten"}}, ["data.root=/Blüten"])
    with Provenance(run, seed=3):
        pass
    before = {path: path.read_bytes() for path in (run.config, run.overrides, run.provenance)}

    def session(error: UserError) -> None:
        with Provenance(run, seed=3):
            run.store({"data": {"root": "/other"}}, [])
            raise error

    for error, changed in ((MissingWeights("put them there"), False), (TrainingEnded("step 7"), True)):
        with pytest.raises(type(error)):
            session(error)
        assert ({path: path.read_bytes() for path in before} != before) == changed


def test_only_a_folder_of_refusals_may_be_taken_by_a_new_run(tmp_path: Path) -> None:
    """What it carries of the stage before goes, as the new run's may be another; a run of its own within the folder stays."""
    run = RunFolder(tmp_path)
    for carried in (RunFolder(run.autoencoder), RunFolder(run.diffusion)):
        carried.path.mkdir()
        carried.config.touch()
    RunFolder(run.diffusion).provenance.touch()
    run.clear_refused()
    assert run.autoencoder.is_dir(), "nothing is known of this folder"
    for number, error in enumerate((MissingWeights("put them there"), UserError("no pictures"))):
        with pytest.raises(UserError), Provenance(run, seed=3):
            raise error
        assert run.never_started()
        assert len(json.loads(run.provenance.read_text())["earlier"]) == number
    run.clear_refused()
    assert (run.autoencoder.exists(), run.diffusion.exists()) == (False, True)
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    assert not run.never_started()


@pytest.mark.parametrize("content", [": [", "- a list", "\x00"])
def test_a_foreign_config_is_named(tmp_path: Path, content: str) -> None:
    run = RunFolder(tmp_path)
    run.config.write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.read_config()


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x]\nb: *a",
        "!!python/object/apply:os.system ['echo']",
        "[" * 5000,
        "9" * 9000,
        "x: 9999-99-99",
        "? [1]\n: 2",
        "x: " + "y" * 2_000_000,
        "paths: {data_dir: 3}\nmodel: {}\ndata: {}\ntrainer: {}",
        'paths: {}\nmodel: {a: ["${oc.env:HOME}"]}\ndata: {}\ntrainer: {}',
    ],
)
def test_a_hostile_config_is_refused_and_nothing_in_it_resolved(tmp_path: Path, content: str) -> None:
    """Aliases, tags, nesting, numbers and dates that are none, size, interpolations."""
    run = RunFolder(tmp_path)
    run.config.write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.read_config()


@pytest.mark.parametrize(
    "line",
    [
        "hydra.callbacks.x._target_=os.system",
        "+hydra.job_logging.x=1",
        "++hydra/launcher=x",
        "~hydra.job",
        "callbacks@hydra.callbacks=x",
        3,
        None,
    ],
)
def test_stored_overrides_do_not_reach_hydra_s_own_node(tmp_path: Path, line: object) -> None:
    """Hydra would call what a line names; a run stores only the search path, which its own configs need."""
    run = RunFolder(tmp_path)
    run.store({}, ["seed=1", "hydra.searchpath=['file:///x']"])
    assert len(run.read_overrides()) == 2
    run.store({}, ["seed=1", line])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"overrides\.yaml"):
        run.read_overrides()


def test_a_read_only_run_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that is not root sees it, and as on a read-only disk."""
    for number in (errno.EACCES, errno.EROFS):

        def fail(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        refused = pytest.raises(UserError, match=rf"cannot be written to \({os.strerror(number)}\): copy it")
        with monkeypatch.context() as patched, refused:
            patched.setattr(os, "open", fail)
            RunFolder(tmp_path).locked().__enter__()
    with pytest.raises(OSError, match="disk"), RunFolder(tmp_path).locked():  # what happens within is another matter
        raise OSError("disk")
