"""The train command with adversarial training, as real processes."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import flowergen
from tests.conftest import Command
from tests.test_train import assert_equal_runs, assert_equal_weights, killed, steps_at_last_checkpoint

pytestmark = pytest.mark.slow


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def guard_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["flowergen"]["guard"]


FROZEN_FEATURES = ("model.discriminator.kind=projected", "model.perceptual=efficientnet", "model.blocks.stem_px=2")


@pytest.mark.parametrize("features", [(), FROZEN_FEATURES], ids=["patch", "projected"])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    command: Command,
    tiny_vae_gan: tuple[str, ...],
    tmp_path: Path,
    process_environment: dict[str, str],
    features: tuple[str, ...],
) -> None:
    """SIGKILL in mid-epoch, between the two parts of an optimiser step, and before the epoch's last.ckpt: weights of both
    networks, both optimisers, moving average, adaptive weight and guard end bit-equal. And everything is logged apart."""
    arguments = [*tiny_vae_gan, *features, "trainer.accumulate_grad_batches=2",
                 "callbacks.checkpoints.checkpoint_every_steps=3", "model.discriminator.norm=spectral",
                 "trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=value"]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert "latents of 4 x 8 x 8" in done.stderr

    killed(run, "VAE-GAN training step", 2 * 11, arguments, process_environment)  # the second part of the eleventh step
    assert steps_at_last_checkpoint(run) == 8
    killed(run, "publish", 2, [f"resume={run}"], process_environment)  # after step 11, before the epoch's
    assert steps_at_last_checkpoint(run) == 11
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, run)

    (last,) = [row for row in rows_of(whole) if row["epoch"] == "3" and row["train_epoch/loss"]]
    for name in ("reconstruction", "kl", "perceptual", "adversarial", "discriminator", "class", "center", "center_push"):
        for split in ("train_epoch", "val"):
            float(last[f"{split}/loss_{name}"])
    for name in ("discriminator_accuracy", "logit_gap", "adaptive_weight"):
        float(last[f"train_epoch/{name}"])
    assert {float(row["train/adversarial_factor"]) for row in rows_of(whole) if row["train/loss"]} >= {0.0, 0.5}

    model = flowergen.load(whole)
    x = torch.rand(2, 3, 32, 32)
    posterior = model.encode(x)
    assert posterior.mean.shape == (2, 4, 8, 8)
    assert model.decode(posterior.mean).shape == model.sample(2).shape == x.shape


@pytest.mark.parametrize("features", [(), FROZEN_FEATURES], ids=["patch", "projected"])
def test_two_processes_and_accumulation_train_alike(
    command: Command, tiny_vae_gan: tuple[str, ...], tmp_path: Path, features: tuple[str, ...]
) -> None:
    """DDP over gloo in two parts, and accumulation 2 x 4 equal one process with batches of 8, but for the order of float32
    sums: both networks, the centres, the adaptive weight."""
    runs = {
        "one": [],
        "ddp": ["trainer.devices=2", "trainer.accumulate_grad_batches=2"],
        "parts": ["trainer.accumulate_grad_batches=2"],
    }
    for name, extra in runs.items():
        # Frozen features amplify rounding: losses of one process and of parts agree to 1e-8 after a step and to 1e-4 after
        # eight; in the second epoch the adaptive weight differs by percents, as with a learning rate that differs by 5e-7.
        epochs = 1 if features else 2
        done = command("train", *tiny_vae_gan, *features, *extra, f"trainer.max_epochs={epochs}",
                       f"hydra.run.dir={tmp_path / name}")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ddp", "parts"):
        assert_equal_weights(tmp_path / "one", tmp_path / name, tolerance=2e-4)
        for row, other in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / name), strict=True):
            for key, value in row.items():
                assert (value == other[key] == "") or float(value) == pytest.approx(float(other[key]), rel=5e-3, abs=1e-4), key


def test_the_guard_rolls_back_three_times_and_its_state_survives_a_kill(
    command: Command, tiny_vae_gan: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """With far too large a weight, reconstructions deteriorate; each time the last good epoch returns, with half the weight."""
    arguments = [*tiny_vae_gan, "model.guard=rollback", "model.guard_margin=0.001", "model.adversarial_weight=1000",
                 "model.adaptive_weight_max=1000", "model.adversarial_start_steps=16", "model.adversarial_ramp_steps=0",
                 "model.optimizer.lr=3e-3", "model.ema_decay=null", "trainer.max_epochs=7"]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert "(3 of 3)" in done.stderr
    assert "model.guard=rollback" not in done.stderr, "it is on already"
    guard = guard_of(whole)
    assert guard["num_rollbacks"] == 3
    factors = [float(row["train/adversarial_factor"]) for row in rows_of(whole) if row["train/loss"]]
    assert list(dict.fromkeys(factors)) == [0.0, 1000.0, 500.0, 250.0, 125.0]
    good = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["flowergen"]["guard"]["good"]["module"]
    assert any("adversary" in key for key in good)

    killed(run, "VAE-GAN training step", 8 * 3 + 3, arguments, process_environment)  # in the epoch after the first rollback
    assert guard_of(run)["num_rollbacks"] == 1
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    {
        ("model.perceptual=vgg16",): ("vgg16-397923af.pth", "paths.weights_dir", "model.perceptual=efficientnet"),
        ("model.adversarial_start_steps=24",): ("model.adversarial_start_steps=24 is never reached", "24 optimiser steps"),
        ("data=image_folder", "data.root=flat"): ("model.class_weight", "need labels"),
    }.items(),
)
def test_what_cannot_work_is_one_line(
    command: Command, tiny_vae_gan: tuple[str, ...], changes: tuple[str, ...], words: tuple[str, ...], tmp_path: Path,
    picture_folder: Path,
) -> None:  # fmt: skip
    """Weights that cannot be downloaded (and no picture is decoded before), a start beyond the end, classes without labels."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in sorted(picture_folder.rglob("*.png")):
        picture.rename(flat / picture.name)
    own = [a for a in tiny_vae_gan if not ("data=image_folder" in changes and a.startswith("data.num_"))]
    done = command("train", *own, *changes, f"paths.weights_dir={tmp_path / 'none'}",
                   f"paths.cache_dir={tmp_path / 'cache'}")  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    for word in words:
        assert word in line
    assert "Traceback" not in done.stderr
    if "vgg16" in changes[0]:
        assert not (tmp_path / "cache").exists()
        assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_resumed_run_keeps_both_networks(command: Command, tiny_vae_gan: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command("train", *tiny_vae_gan, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    done = command("train", f"resume={run}", "trainer.max_epochs=2", "model.adversarial_weight=0")
    assert done.returncode == 2
    assert "model.adversarial_weight was 0.5 and is 0" in done.stderr
    done = command("train", f"resume={run}", "trainer.max_epochs=2", "model.adversarial_weight=0.1", "model.guard=rollback")
    assert done.returncode == 0, done.stderr
    assert guard_of(run)["good"] is not None
    assert float([row for row in rows_of(run) if row["train/loss"]][-1]["train/adversarial_factor"]) == 0.1
