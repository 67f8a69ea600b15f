"""Time, memory and batch size, by the train command as real processes."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import Command
from tests.test_train import only_run

pytestmark = pytest.mark.slow


def test_a_budget_and_a_batch_size_of_its_own_choice(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    """Found once, kept by a resumed run; a spent budget is refused, a larger one goes on."""
    options = [option for option in tiny_run if not option.startswith("data.batch_size=")]
    done = command("train", *options, "data.num_images=400", "data.batch_size=auto", "trainer.budget=8s")
    assert done.returncode == 0, done.stderr
    for words in (
        "data.batch_size=auto: 16 (",
        "the learning rate stays as it is",
        "budget of 0:00:08: ",
        "trainer.budget=...",
    ):
        assert words in done.stderr, done.stderr
    run = only_run(tmp_path)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 16
    assert "data.batch_size=auto" in yaml.safe_load((run / "overrides.yaml").read_text())
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = last["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    assert (run / "images" / f"generated_epoch_{epochs:04d}.png").is_file()

    spent = command("train", f"resume={run}")
    assert spent.returncode == 2
    assert "the budget of 8s is used up: raise trainer.budget=" in spent.stderr

    more = command("train", f"resume={run}", "trainer.budget=14s")
    assert more.returncode == 0, more.stderr
    assert "data.batch_size=auto: trying" not in more.stderr
    steps = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["flowergen"]["optimizer_steps"]
    assert steps > last["flowergen"]["optimizer_steps"]
    overrides = yaml.safe_load((run / "overrides.yaml").read_text())
    assert "data.batch_size=auto" in overrides
    assert not [line for line in overrides if line.startswith("++data.batch_size")]


def test_a_model_that_no_memory_holds_is_one_line(command: Command, tiny_run: tuple[str, ...]) -> None:
    done = command("train", *tiny_run, "model.channels=[65536,65536]")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: out of memory (CPU, "), done.stderr
    assert (
        " at batches of 8: set data.batch_size=4, or keep it and split it with trainer.accumulate_grad_batches=2" in lines[-1]
    )
    assert "Traceback" not in done.stderr
