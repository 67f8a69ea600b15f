"""``train init=RUN`` as real processes: training goes on with other pictures, without what it started from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import flowergen
from tests.conftest import Command
from tests.test_train import assert_equal_weights, killed

pytestmark = pytest.mark.slow

OTHER = ("data=procedural", "data.num_images=80", "data.num_classes=6", "data.batch_size=8", "trainer.accelerator=cpu",
         "trainer.num_threads=1", "trainer.max_epochs=2", "callbacks.images.num_samples=4",
         "callbacks.images.num_reconstructions=4")  # fmt: skip


def test_a_run_starts_from_another_and_is_resumed_without_it(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Killed before its first checkpoint it reads the parent again; after that it does not need it."""
    parent = tmp_path / "a parent"
    done = command("train", *tiny_run, "trainer.max_epochs=1", f"hydra.run.dir={parent}")
    assert done.returncode == 0, done.stderr
    arguments = [f"init={parent}", *OTHER, "experiment=finetune", "callbacks.checkpoints.checkpoint_every_steps=3"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert f"starting from {parent}: " in done.stderr
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert (config["model"]["channels"], config["data"]["image_size"], config["model"]["optimizer"]["lr"]) == ([4, 8], 28, 1e-3)
    assert config["model"]["lr_schedule"] == "cosine", "of the recipe"
    assert json.loads((whole / "provenance.json").read_text())["init"] == str(parent)

    killed(run, "training step", 2, arguments, process_environment)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    killed(run, "training step", 6, [f"resume={run}"], process_environment)
    shutil.rmtree(parent)
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "starting from" not in done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    refused = command("train", f"resume={run}", f"init={whole}", "trainer.max_epochs=3")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "resume: init was" in refused.stderr
    missing = command("train", f"init={parent}", *OTHER)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    assert "no such run" in missing.stderr


def test_a_diffusion_run_starts_from_another_with_other_classes(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """It has the parent's autoencoder and, without training to speak of, the parent's weights."""
    theirs = flowergen.load(diffusion_run)
    rng = np.random.default_rng(0)
    for name in (theirs.class_names[2], "zinnia", theirs.class_names[0]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    run = tmp_path / "run"
    few = ("data.batch_size=8", "trainer.accelerator=cpu", "trainer.num_threads=1", "trainer.max_epochs=1",
           "callbacks.images.num_samples=3", "callbacks.images.num_reconstructions=3", "model.optimizer.lr=1e-9")  # fmt: skip
    pictures = ("data=image_folder", f"data.root={tmp_path / 'pictures'}")
    done = command("train", f"init={diffusion_run}", *pictures, *few, f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert "2 of 3 classes have a counterpart of the same name; the others start from the mean of the classes" in done.stderr
    ours = flowergen.load(run)
    assert torch.equal(ours.module.autoencoder.state_dict()["net.decoder.to_picture.weight"],
                       theirs.module.autoencoder.state_dict()["net.decoder.to_picture.weight"])  # fmt: skip
    after = ours.module.inference_net.state_dict()
    for name, before in theirs.module.inference_net.state_dict().items():
        if name == "embed.label.weight":
            rows = {label: before[number] for number, label in enumerate(theirs.class_names)}
            before = torch.stack([rows.get(label, before[:-1].mean(0)) for label in ours.class_names] + [before[-1]])
        torch.testing.assert_close(after[name], before, rtol=1e-5, atol=1e-5, msg=name)
