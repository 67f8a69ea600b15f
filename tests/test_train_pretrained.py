"""``train model=vae_gan init=FOLDER`` of an autoencoder of diffusers as processes, which do not need it after the start."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import flowergen
from tests.conftest import Command
from tests.runs.test_pretrained import saved
from tests.test_train import assert_equal_runs, killed

pytestmark = pytest.mark.slow

FEW = ("data=procedural", "data.num_images=80", "data.num_classes=4", "data.image_size=32", "data.batch_size=8",
       "model.perceptual=discriminator", "model.discriminator.channels=4", "model.adversarial_start_steps=3",
       "model.adversarial_ramp_steps=4", "model.ema_decay=0.9", "trainer.accelerator=cpu", "trainer.num_threads=1",
       "trainer.log_every_n_steps=2", "trainer.max_epochs=3", "callbacks.images.num_samples=4",
       "callbacks.images.num_reconstructions=4", "callbacks.images.every_epochs=3",
       "callbacks.checkpoints.checkpoint_every_steps=3")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("AutoencoderKL", ("model.class_weight=0.1",)), ("AutoencoderTiny", ("model.freeze=encoder",))],
    ids=["KL", "Tiny"],
)
def test_a_killed_run_goes_on_to_the_bit_without_what_it_started_from(
    kind: str,
    changes: tuple[str, ...],
    command: Command,
    tiny_latent_ddpm: tuple[str, ...],
    tmp_path: Path,
    process_environment: dict[str, str],
) -> None:
    """Then it is the autoencoder of a diffusion run, whose decoder is trained, the start of another run, and shared."""
    source = tmp_path / "a source"
    net = saved(source, kind)
    arguments = ["model=vae_gan", f"init={source}", *FEW, *changes]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert f"starting from {source}: {kind} with " in done.stderr
    assert json.loads((whole / "provenance.json").read_text())["init"] == str(source)

    killed(run, "VAE-GAN training step", 2, arguments, process_environment)  # before the first checkpoint
    killed(run, "VAE-GAN training step", 11, [f"resume={run}"], process_environment)
    shutil.rmtree(source)
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, run)
    refused = command("train", f"resume={run}", "model.freeze=none" if "freeze" in changes[0] else "model.freeze=encoder",
                      "model.class_weight=0")  # fmt: skip
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)

    model = flowergen.load(run)
    assert f"{kind} of a source, 32 px" in repr(model)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        encoded = net.encode(2 * x - 1)
        z = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded[0]
    if "model.freeze=encoder" in changes:
        torch.testing.assert_close(model.encode(x).mean, z, rtol=0, atol=1e-5)
    else:
        assert (model.encode(x).mean - z).abs().max() > 1e-4

    ldm, decoder, child = tmp_path / "ldm", tmp_path / "decoder", tmp_path / "child"
    few = ("trainer.max_epochs=1", "callbacks.images.every_epochs=1")
    done = command("train", *tiny_latent_ddpm, *few, f"autoencoder={run}", f"hydra.run.dir={ldm}")
    assert done.returncode == 0, done.stderr
    same = ("data.num_images=80", "data.num_classes=4", "data.batch_size=8", "trainer.accelerator=cpu")
    done = command("train", "model=decoder", f"diffusion={ldm}", "model.num_latents=8", "model.channels=4", *same, *few,
                   f"hydra.run.dir={decoder}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("sample", f"run={decoder}", "num=2")
    assert done.returncode == 0, done.stderr
    done = command("evaluate", f"run={run}", "num_samples=8", "repeats=1")
    assert done.returncode == 0, done.stderr

    done = command("push", f"run={run}", f"out={tmp_path / 'shared'}")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "shared").glob("*.[jmy]*"))
    done = command("train", f"init={tmp_path / 'shared'}", *FEW, "trainer.max_epochs=1", "model.optimizer.lr=1e-9",
                   f"hydra.run.dir={child}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((child / "config.yaml").read_text())["model"]["freeze"] == "none", "a setting of training"
    torch.testing.assert_close(flowergen.load(child).encode(x).mean, model.encode(x).mean, rtol=1e-4, atol=1e-4)
