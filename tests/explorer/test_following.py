"""Run: the files of the folder as they are now."""

import base64
import os
import re
import shutil
from pathlib import Path

import pytest

from flowergen.errors import UserError
from flowergen.explorer import following
from flowergen.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture
def run(diffusion_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(diffusion_run, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def shown(page: str) -> list[bytes]:
    return [base64.b64decode(file) for file in re.findall(r'base64,([^"]+)"', page)]


def test_a_finished_run(run: RunFolder) -> None:
    assert following.epochs(run) == [2]
    assert "epoch 2" in following.curves(run)
    assert "Training: finished." in following.curves(run)
    assert shown(following.curves(run)) == [(run.path / "loss_plot.png").read_bytes()]
    assert shown(following.pictures_of_epoch(run, 1)) == [
        (run.images / f"{kind}_epoch_0002.png").read_bytes() for kind in ("generated", "reconstruction")
    ]
    assert "flowergen.evaluate" in following.card(run)


def test_new_pictures_of_a_run_that_is_training_appear(run: RunFolder) -> None:
    before = following.versions(run)
    assert following.versions(run) == before
    (run.images / "generated_epoch_0013.png").write_bytes(b"new")
    assert following.versions(run) != before
    assert following.epochs(run) == [2, 13]
    assert shown(following.pictures_of_epoch(run, 2)) == [b"new"]
    assert shown(following.pictures_of_epoch(run, 99)) == [b"new"]  # the slider stands at an end that has moved
    before = following.versions(run)
    os.utime(run.metrics, (1, 1))
    assert following.versions(run) != before


def test_a_folder_without_any_of_these_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert following.epochs(run) == following.versions(run) == []
    assert "not written any pictures" in following.pictures_of_epoch(run, 1)
    assert "No metrics yet" in following.curves(run)
    run.images.mkdir()
    (run.images / "generated_epoch_0001.png").write_bytes(b"")
    with pytest.raises(UserError, match="number of a picture"):
        following.pictures_of_epoch(run, "../../etc/passwd")


def test_a_card_is_shown_without_its_protocol(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "newest_card", lambda _: {})
    monkeypatch.setattr(following, "markdown", lambda _: "# Run\n\n| FID |\n\n## Protocol 12\n\n- seed: 0\n")
    assert following.card(run) == "# Run\n\n| FID |\n"
