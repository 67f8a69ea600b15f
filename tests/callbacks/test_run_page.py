"""The page while a run trains, and when it has ended one way or another."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.run_page import write_page
from flowergen.runs.trainer import build_trainer
from tests.conftest import TINY_RUN

RELOADS = 'http-equiv="refresh"'


class Broken(Exception):
    """What ends a training in these tests."""


class Reader(Callback):
    """Reads the page whenever a batch begins; breaks off in the given epoch."""

    def __init__(self, page: Path, breaks_in: int | None):
        self.page, self.breaks_in, self.seen = page, breaks_in, list[str]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.page.read_text())
        if trainer.current_epoch == self.breaks_in:
            raise Broken


@pytest.mark.parametrize("breaks_in", [None, 1])
def test_the_page_reloads_itself_until_training_ends(
    breaks_in: int | None, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first batch on; the second epoch's page has the pictures of the first."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    config = resolve(checked([*TINY_RUN, "logger=none", "callbacks.images.every_epochs=1"])[0])
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(yaml.safe_dump(config))
    data = build_datamodule(config)
    data.setup()
    trainer, reader = build_trainer(config, run, None), Reader(run.page, breaks_in)
    trainer.callbacks.append(reader)
    module = build_module(config, len(data.class_names))
    if breaks_in is None:
        trainer.fit(module, datamodule=data)
    else:
        with pytest.raises(Broken):
            trainer.fit(module, datamodule=data)
    assert all(RELOADS in page for page in reader.seen)
    assert "generated_epoch_0001.png" not in reader.seen[0]
    assert "generated_epoch_0001.png" in reader.seen[-1]
    last = run.page.read_text()
    assert RELOADS not in last
    assert ("generated_epoch_0002.png" in last) == (breaks_in is None)


def test_a_page_that_another_command_writes_reloads_while_a_process_trains_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.locked():
        assert RELOADS in write_page(run).read_text()
    assert RELOADS not in write_page(run).read_text()
