"""The train command with the decoder of a diffusion model, as real processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import flowergen
from flowergen.modules.fingerprint import fingerprint
from tests.conftest import TINY_DECODER, Command
from tests.test_train import assert_equal_weights, killed, steps_at_last_checkpoint

pytestmark = pytest.mark.slow


def test_a_killed_decoder_goes_on_without_the_stages_before_as_if_nothing_had_happened(
    command: Command, diffusion_run: Path, tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """SIGKILL in mid-epoch and before a checkpoint; meanwhile the diffusion run and the cache are deleted. What is left samples
    with the trained decoder: everything else of the diffusion model is as it was."""
    stage2, cache = tmp_path / "stage 2", tmp_path / "cache"
    shutil.copytree(diffusion_run, stage2)
    arguments = ["experiment=flowers_laptop_decoder", "data=procedural", "trainer.budget=null",
                 "trainer.check_val_every_n_epoch=1", *TINY_DECODER[1:], f"diffusion={stage2}", f"paths.cache_dir={cache}",
                 "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.checkpoint_every_steps=3"]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert "drawing 12 samples" in done.stderr
    assert not [line for line in yaml.safe_load((whole / "overrides.yaml").read_text()) if "image_size" in line]

    killed(run, "decoder training step", 2 * 5 + 2, arguments, process_environment)
    assert steps_at_last_checkpoint(run) == 3
    shutil.rmtree(stage2)
    shutil.rmtree(cache)
    killed(run, "publish", 1, [f"resume={run}"], process_environment)
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    for folder in (whole, run):
        done = command("train", f"resume={folder}", "trainer.max_epochs=3")
        assert done.returncode == 0, done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()

    moved = tmp_path / "moved"
    run.rename(moved)
    model, before = flowergen.load(moved), flowergen.load(diffusion_run)
    x, z = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 8, 8)
    assert torch.equal(model.encode(x).mean, before.encode(x).mean)
    assert torch.equal(model.module.denoised([0], torch.tensor([1]), 0, model.module.sampling),
                       before.module.denoised([0], torch.tensor([1]), 0, before.module.sampling))  # fmt: skip
    weights = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    own = model.module.autoencoder.inference_net.decoder.state_dict()
    assert all(torch.equal(value, weights[f"ema.net.{name}"]) for name, value in own.items())
    assert not torch.equal(model.decode(z), before.decode(z))
    assert not (moved / "checkpoints" / "best.ckpt").exists()

    commands = {
        ("sample", "num=2"): "samples/seed0/denoising_path.png",
        ("latents", "num=8"): "latents/test/report.md",
        ("export", "format=safetensors"): "export/safetensors/decoder.safetensors",
        ("evaluate", "num_samples=8", "repeats=1", "extractor=efficientnet", f"paths.cache_dir={cache}"): "evaluation",
    }
    for (name, *options), written in commands.items():
        done = command(name, f"run={moved}", *options)
        assert done.returncode == 0, done.stderr
        assert (moved / written).exists()
    (card,) = (json.loads(path.read_text())["subject"] for path in moved.glob("evaluation/*/card.json"))
    assert card["decoder"] == fingerprint(model.module.autoencoder.inference_net)
    assert "decoder trained on samples for 24 steps" in card["model"]


def test_two_processes_and_parts_train_the_same_decoder(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """DDP over gloo, and accumulation, equal one process but for the order of float32 sums.

    Losses of the first step agree to 1e-7, and weights after eight differ as little as between one thread and two. In the
    second epoch adversarial training amplifies that beyond the bound, as in the VAE-GAN's test with frozen features.
    """
    runs = {"one": [], "ddp": ["trainer.devices=2"], "parts": ["trainer.accumulate_grad_batches=2"]}
    for name, extra in runs.items():
        done = command("train", *TINY_DECODER, f"diffusion={diffusion_run}", *extra, "+model.optimizer.eps=1e-4",
                       "+model.discriminator_optimizer.eps=1e-4",
                       "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / name}")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ddp", "parts"):
        assert_equal_weights(tmp_path / "one", tmp_path / name, tolerance=2e-4)


def test_a_budget_and_scores_of_samples_while_training(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """The budget times the decoder's own end, and the scores are of samples by class."""
    done = command("train", *TINY_DECODER, f"diffusion={diffusion_run}", "trainer.budget=8s", "data.batch_size=auto",
                   "callbacks.evaluation.every_epochs=1", "callbacks.evaluation.num_samples=4",
                   "callbacks.evaluation.extractor=efficientnet", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "eval/class_accuracy" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert (tmp_path / "run" / "checkpoints" / "best_fid.ckpt").is_file()


def test_pictures_of_other_classes_are_refused(command: Command, diffusion_run: Path, picture_folder: Path) -> None:
    """Else the samples of its first classes would be held against these."""
    own = [line for line in TINY_DECODER if not line.startswith("data.num_")]
    done = command("train", *own, "data=image_folder", f"data.root={picture_folder}", f"diffusion={diffusion_run}")
    assert done.returncode == 2
    assert "has 4 classes" in done.stderr.splitlines()[-1]


WRONG = {
    (): ("python -m flowergen.train model=latent_ddpm data=procedural", "diffusion=RUN"),
    ("diffusion=none",): ("diffusion=RUN",),
    ("diffusion=nothing",): ("diffusion=", "no such run"),
    ("diffusion=STAGE1",): ("is not a latent diffusion run",),
    ("diffusion=STAGE2", "data.image_size=64"): ("the diffusion model was trained with data.image_size=32",),
    ("diffusion=STAGE2", "data.num_images=96"): ("pictures, labels or split", "diffusion model"),
    ("diffusion=STAGE2", "model=vae"): ("model=decoder",),
    ("autoencoder=STAGE1",): ("autoencoder= is only for model=latent_ddpm",),
    ("autoencoder=DECODER", "model=latent_ddpm"): ("is a diffusion run itself",),
    ("diffusion=DECODER",): ("is the run of a decoder",),
}


def test_what_cannot_work_is_one_line(command: Command, autoencoder_run: Path, diffusion_run: Path, tmp_path: Path) -> None:
    """For the last two, a decoder's run that has only begun."""
    (tmp_path / "decoder" / "checkpoints").mkdir(parents=True)
    config = yaml.safe_load((diffusion_run / "config.yaml").read_text())
    (tmp_path / "decoder" / "config.yaml").write_text(yaml.safe_dump(config | {"autoencoder": None, "diffusion": "somewhere"}))
    where = {"STAGE1": autoencoder_run, "STAGE2": diffusion_run, "DECODER": tmp_path / "decoder"}
    for changes, words in WRONG.items():
        filled = [f"{key}={where.get(value, value)}" for key, _, value in (change.partition("=") for change in changes)]
        other_model = any(change.startswith("model=") for change in changes)
        own = [line for line in TINY_DECODER if not (other_model and line.startswith("model"))]
        done = command("train", *own, *filled)
        assert done.returncode == 2, (changes, done.stdout + done.stderr)
        (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
        for word in words:
            assert word in line, (changes, line)
        assert "Traceback" not in done.stderr
