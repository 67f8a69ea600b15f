"""Run: the files of the folder as they are now."""

import base64
import os
import re
import shutil
from pathlib import Path

import pytest

from flowergen.errors import UserError
from flowergen.explorer import training_progress
from flowergen.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture
def run(diffusion_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(diffusion_run, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def shown(page: str) -> list[bytes]:
    return [base64.b64decode(file) for file in re.findall(r'base64,([^"]+)"', page)]


def test_a_finished_run(run: RunFolder) -> None:
    assert training_progress.epochs(run) == [2]
    assert "epoch 2" in training_progress.curves(run)
    assert "Training: finished." in training_progress.curves(run)
    assert shown(training_progress.curves(run)) == [(run.path / "loss_plot.png").read_bytes()]
    assert shown(training_progress.pictures_of_epoch(run, 1)) == [
        (run.images / f"{kind}_epoch_0002.png").read_bytes() for kind in ("generated", "reconstruction")
    ]
    assert "flowergen.evaluate" in training_progress.card(run)


def test_new_pictures_of_a_run_that_is_training_appear(run: RunFolder) -> None:
    before = training_progress.versions(run)
    assert training_progress.versions(run) == before
    (run.images / "generated_epoch_0013.png").write_bytes(b"new")
    assert training_progress.versions(run) != before
    assert training_progress.epochs(run) == [2, 13]
    assert shown(training_progress.pictures_of_epoch(run, 2)) == [b"new"]
    assert shown(training_progress.pictures_of_epoch(run, 99)) == [b"new"]  # the slider stands at an end that has moved
    before = training_progress.versions(run)
    os.utime(run.metrics, (1, 1))
    assert training_progress.versions(run) != before


def test_a_folder_without_any_of_these_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert training_progress.epochs(run) == training_progress.versions(run) == []
    assert "not written any pictures" in training_progress.pictures_of_epoch(run, 1)
    assert "No metrics yet" in training_progress.curves(run)
    run.images.mkdir()
    (run.images / "generated_epoch_0001.png").write_bytes(b"")
    with pytest.raises(UserError, match="number of a picture"):
        training_progress.pictures_of_epoch(run, "../../etc/passwd")


def test_a_card_is_shown_without_its_protocol(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_progress, "newest_card", lambda _: {})
    monkeypatch.setattr(training_progress, "markdown", lambda _: "# Run\n\n| FID |\n\n## Protocol 12\n\n- seed: 0\n")
    assert training_progress.card(run) == "# Run\n\n| FID |\n"
