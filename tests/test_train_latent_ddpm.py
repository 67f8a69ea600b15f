"""The train command with a diffusion model, as real processes."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import flowergen
from tests.conftest import Command
from tests.test_train import assert_equal_runs, assert_equal_weights, killed, steps_at_last_checkpoint

pytestmark = pytest.mark.slow


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_diffusion_goes_on_without_the_first_stage_as_if_nothing_had_happened(
    command: Command, tiny_latent_ddpm: tuple[str, ...], autoencoder_run: Path, tmp_path: Path,
    process_environment: dict[str, str],
) -> None:  # fmt: skip
    """SIGKILL in mid-epoch, in the second epoch's validation and before its checkpoint; meanwhile the autoencoder's run is
    deleted, and the cache of latents as well. Weights, average, optimiser and metrics.csv end bit-equal; then both are
    extended by an epoch."""
    stage1 = tmp_path / "stage 1"
    shutil.copytree(autoencoder_run, stage1)
    cache = tmp_path / "cache"
    arguments = [*tiny_latent_ddpm, f"autoencoder={stage1}", "trainer.accumulate_grad_batches=2", f"paths.cache_dir={cache}",
                 "callbacks.checkpoints.checkpoint_every_steps=3", "model.alignment_weight=0.5"]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert "latents of 3 x 8 x 8" in done.stderr

    killed(run, "diffusion training step", 2 * 5 + 2, arguments, process_environment)
    assert steps_at_last_checkpoint(run) == 3
    shutil.rmtree(stage1)
    for latents in (*cache.glob("*latents*"), *cache.glob("*_features_*")):
        shutil.rmtree(latents) if latents.is_dir() else latents.unlink()
    killed(run, "diffusion validation step", 3, [f"resume={run}"], process_environment)
    killed(run, "publish", 1, [f"resume={run}"], process_environment)
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()

    typed = yaml.safe_load((whole / "overrides.yaml").read_text())
    assert not [line for line in typed if line.lstrip("+").startswith(("data.image_size", "data.split"))], "not as typed"

    last = next(row for row in reversed(rows_of(whole)) if row["val/loss"])
    for name in ("loss", "loss_train", *(f"loss_{kind}noise_{k}" for kind in ("", "train_") for k in (1, 2, 3, 4))):
        float(last[f"val/{name}"])

    for folder in (whole, run):
        done = command("train", f"resume={folder}", "trainer.max_epochs=3")
        assert done.returncode == 0, done.stderr
        assert "cosine now ends with epoch 3" in done.stderr
    assert_equal_runs(whole, run)

    moved = tmp_path / "moved"
    run.rename(moved)
    model = flowergen.load(moved)
    x = torch.rand(2, 3, 32, 32)
    assert model.encode(x).mean.shape == (2, 3, 8, 8)
    assert model.decode(model.encode(x).mean).shape == model.sample(2).shape == x.shape
    checkpoint = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    names = checkpoint["state_dict"].keys()
    assert {name.partition(".")[0] for name in names} == {
        *("net", "ema", "latent_mean", "latent_std"),
        *("feature_head", "feature_mean", "feature_std"),
    }
    assert any(not torch.equal(checkpoint["state_dict"][name], checkpoint["state_dict"][f"ema.{name}"])
               for name in names if name.startswith("net."))  # fmt: skip


def test_two_processes_and_parts_train_the_same_diffusion(
    command: Command, tiny_latent_ddpm: tuple[str, ...], autoencoder_run: Path, tmp_path: Path
) -> None:
    """DDP over gloo in two parts, accumulation, and encoding at every step equal one process with batches of 8 and cached
    latents, but for the order of float32 sums."""
    aligned = "model.alignment_weight=0.5"
    runs = {
        "one": [aligned],
        "ddp": [aligned, "trainer.devices=2", "trainer.accumulate_grad_batches=2"],
        "parts": [aligned, "trainer.accumulate_grad_batches=4"],
        "cache": [],
        "no_cache": ["model.latent_cache=false"],
    }
    for name, extra in runs.items():
        done = command("train", *tiny_latent_ddpm, f"autoencoder={autoencoder_run}", *extra, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stdout + done.stderr
    for one, name in (("one", "ddp"), ("one", "parts"), ("cache", "no_cache")):
        assert_equal_weights(tmp_path / one, tmp_path / name, tolerance=2e-4)
        for row, other in zip(rows_of(tmp_path / one), rows_of(tmp_path / name), strict=True):
            for key, value in row.items():
                assert (value == other[key] == "") or float(value) == pytest.approx(float(other[key]), rel=1e-3), key


@pytest.mark.parametrize(
    "arguments",
    [
        ("autoencoder=none", "data.image_size=8", "model.objective=x0", "model.schedule=linear"),
        ("autoencoder=none", "data.image_size=8", "data=image_folder", "data.root=flat", "model.objective=eps"),
        ("autoencoder=flat_vae", "model/network=dit", "model.network.patch_size=1", "model.network.hidden_size=16",
         "model.network.depth=1", "model.network.num_heads=2", "model.objective=flow", "model.time_sampling=logit_normal",
         "model.sampling.sampler=heun"),
        ("autoencoder=flat_vae", "model.weighting=min_snr", "model.sampling.sampler=ddpm"),
    ],
)  # fmt: skip
def test_pixels_flat_latents_and_pictures_without_classes(
    command: Command, tiny_run: tuple[str, ...], tiny_latent_ddpm: tuple[str, ...], arguments: tuple[str, ...],
    tmp_path: Path, picture_folder: Path,
) -> None:  # fmt: skip
    """Each trains, and samples from its run folder."""
    own = list(tiny_latent_ddpm)
    if "model/network=dit" in arguments:
        own = [argument for argument in own if not argument.startswith("model.network.")]
    if "data=image_folder" in arguments:
        own = [argument for argument in own if not argument.startswith("data.num_")]
        (tmp_path / "flat").mkdir()
        for picture in sorted(picture_folder.rglob("*.png")):
            picture.rename(tmp_path / "flat" / picture.name)
    if "autoencoder=flat_vae" in arguments:
        done = command(
            "train", *tiny_run, "model.latent_dim=6", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'flat_vae'}"
        )
        assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    done = command("train", *own, *arguments, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    by_frequency = [] if "data=image_folder" in arguments else ["class_frequencies=train"]
    done = command("sample", f"run={run}", "num=3", *by_frequency)
    assert done.returncode == 0, done.stderr
    assert (run / "samples" / "seed0" / "denoising_path.png").is_file()
    assert len(list((run / "samples" / "seed0" / "pictures").glob("*.png"))) == 3


WRONG = {
    (): ("python -m flowergen.train model=vae_gan data=procedural", "autoencoder=RUN"),
    ("autoencoder=nothing",): ("autoencoder=", "no such run"),
    ("autoencoder=DIFFUSION",): ("is a diffusion run itself",),
    ("autoencoder=STAGE1", "data.split_seed=1"): ("data.split_seed=1",),
    ("autoencoder=STAGE1", "data.num_images=96"): ("pictures, labels or split",),
    ("autoencoder=STAGE1", "model.network.multipliers=[1,1,1,1]"): ("4 levels", "fewer multipliers"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.items())
def test_what_cannot_work_is_one_line(
    command: Command, tiny_latent_ddpm: tuple[str, ...], autoencoder_run: Path, diffusion_run: Path,
    changes: tuple[str, ...], words: tuple[str, ...],
) -> None:  # fmt: skip
    where = {"DIFFUSION": str(diffusion_run), "STAGE1": str(autoencoder_run)}
    filled = [change.replace(name, path) for change in changes for name, path in where.items() if name in change]
    filled += [change for change in changes if not any(name in change for name in where)]
    done = command("train", *tiny_latent_ddpm, *filled)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    for word in words:
        assert word in line
    assert "Traceback" not in done.stderr


def test_a_resumed_diffusion_keeps_its_autoencoder(
    command: Command, diffusion_run: Path, autoencoder_run: Path, tmp_path: Path
) -> None:
    """Another one is refused by its path; one that was swapped within the run folder by its weights."""
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(diffusion_run, run)
    shutil.copytree(autoencoder_run, other)
    done = command("train", f"resume={run}", "trainer.max_epochs=3", f"autoencoder={other}")
    assert done.returncode == 2
    assert "autoencoder was" in done.stderr
    path = run / "autoencoder" / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    for tensor in content["state_dict"].values():
        tensor.add_(0.01)
    torch.save(content, path)
    done = command("sample", f"run={run}", "num=1")
    assert done.returncode == 2
    assert "an autoencoder other than the one in its run folder" in done.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["autoencoder"] == str(autoencoder_run)
