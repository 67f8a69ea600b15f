"""Pictures in grey and of other shapes than squares, from the listing to the card: runs of every model, and every command."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import flowergen
from flowergen import evaluate, export, latents, push, sample, vary
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape
from tests.conftest import Command, run_command

pytestmark = pytest.mark.slow

TINY = (
    "data=procedural",
    "data.num_images=40",  # 32 to train, 4 to validate, 4 to test
    "data.num_classes=4",
    "data.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.num_threads=1",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "callbacks.images.num_samples=4",
    "callbacks.images.num_reconstructions=4",
    "callbacks.images.every_epochs=1",
)
TINY_UNET = (
    "model=latent_ddpm",
    "model.network.channels=16",
    "model.network.multipliers=[1,2]",
    "model.network.num_blocks=1",
    "model.sampling.steps=3",
)
MODELS = {
    "vae": ("model=vae", "model.channels=[4,8]", "model.latent_dim=4", "model.norm=group"),
    "vae_gan": (
        *("model=vae_gan", "model.blocks.channels=[4,8]", "model.blocks.num_blocks=[0,1]", "model.discriminator.channels=4"),
        *("model.adversarial_start_steps=1", "model.adversarial_ramp_steps=1"),
    ),
    "latent_ddpm": (*TINY_UNET, "model.alignment_weight=0.5"),
}
SHAPES = {
    "48x64 padded": (PictureShape(3, 48, 64), ("data.image_size=[48,64]", "data.fit=pad")),
    "48x64 grey": (PictureShape(1, 48, 64), ("data.image_size=[48,64]", "data.channels=1")),
}
SMALL = ("extractor=efficientnet", "num_samples=6", "repeats=1")

Here = Callable[..., str]


class Runs(NamedTuple):
    shape: PictureShape
    folder: Path  # with a run of each model

    @property
    def mode(self) -> str:
        """Pillow's name for the colours of a picture's file."""
        return "L" if self.shape.channels == 1 else "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """As Pillow gives it, the width first."""
        return self.shape.width, self.shape.height


@pytest.fixture(scope="module", params=SHAPES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, process_environment: dict[str, str]) -> Runs:
    """Two steps of each model, and after resuming two more; diffusion inherits the shape from its autoencoder."""
    shape, of_the_pictures = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("shapes")
    for name, settings in MODELS.items():
        chosen = (f"autoencoder={folder / 'vae_gan'}",) if name == "latent_ddpm" else of_the_pictures
        for arguments in (
            (*TINY, *settings, *chosen, f"hydra.run.dir={folder / name}"),
            (f"resume={folder / name}", "trainer.max_epochs=2"),
        ):
            done = run_command("train", *arguments, folder=folder, environment=process_environment)
            assert done.returncode == 0, done.stderr
    return Runs(shape, folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_dir: Path, tmp_path: Path) -> Here:
    """``here(sample, "run=RUN")`` runs the command in this process and returns what it prints."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    monkeypatch.chdir(tmp_path)

    def run(command: ModuleType, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
        command.main()
        return capsys.readouterr().out

    return run


def looks_of(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and size of a file."""
    with Image.open(path) as image:
        return image.mode, image.size


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_and_is_resumed(name: str, runs: Runs) -> None:
    """It encodes, decodes and samples pictures of the shape; grids and the page of the run show them."""
    run, shape = runs.folder / name, runs.shape
    model = flowergen.load(run / "checkpoints" / "last.ckpt")
    assert (model.module.optimizer_steps, model.module.picture_shape) == (4, shape)
    x = torch.rand(2, *shape)
    z = model.encode(x).mean
    assert z.shape == (2, *model.module.latent_shape)
    assert model.decode(z).shape == model.sample(2).shape == x.shape
    wrong = "(N, {}, {}, {}), and these have (2, {}, {}, {})".format(*shape, *x.mT[..., :-1].shape[1:])
    with pytest.raises(UserError) as error:
        model.encode(x.mT[..., :-1])
    assert wrong in str(error.value)
    width, height = runs.size
    assert looks_of(run / "images" / "reconstruction_epoch_0002.png") == ("RGB", (4 * (width + 2) - 2, 2 * (height + 2) - 2))
    assert f" at {shape}, 4 optimiser steps" in (run / "index.html").read_text()


def test_files_are_fitted_as_the_pictures_of_the_training_were(runs: Runs, tmp_path: Path) -> None:
    """A white strip covers the shape, or has black above and below."""
    model = flowergen.load(runs.folder / "vae")
    Image.new("RGB", (60, 20), "white").save(tmp_path / "strip.png")
    x = model.read(tmp_path / "strip.png")
    assert x.shape == (1, *runs.shape)
    assert (x[..., runs.shape.height // 2, :] == 1).all()
    assert x[0, 0, 0, 0] == x[0, 0, -1, -1] == (0 if model.config["data"]["fit"] == "pad" else 1)


@pytest.mark.parametrize("name", MODELS)
def test_samples_have_the_shape(name: str, runs: Runs, here: Here, tmp_path: Path) -> None:
    """Files of grey samples are grey; the denoising is a GIF of two pictures side by side."""
    run, width = runs.folder / name, runs.shape.width
    here(sample, f"run={run}", "num=3", f"out={tmp_path / 'png'}")
    found = sorted((tmp_path / "png" / "pictures").iterdir())
    assert [looks_of(path) for path in found] == [(runs.mode, runs.size)] * 3
    assert looks_of(tmp_path / "png" / "grid.png")[0] == "RGB"
    here(sample, f"run={run}", "num=3", "format=npz", "denoising=false", f"out={tmp_path / 'npz'}")
    channels, height, width = runs.shape
    pixels = np.load(tmp_path / "npz" / "samples.npz")["arr_0"]
    assert pixels.shape == (3, height, width, channels)
    by_number = sorted(found, key=lambda path: path.stem[-5:])
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in by_number]).reshape(pixels.shape), pixels)
    if name == "latent_ddpm":
        (gif,) = (tmp_path / "png" / "denoising").glob("*.gif")
        assert looks_of(gif)[1] == (2 * width, height)
        assert looks_of(gif.with_suffix(".png"))[1] == (4 * (width + 2) - 2, 2 * (height + 2) - 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_card_says_the_shape(name: str, runs: Runs, here: Here, tmp_path: Path) -> None:
    """All that is measured of squares in colour is measured; cards of these have no key that older ones lack."""
    here(evaluate, f"run={runs.folder / name}", *SMALL, f"out={tmp_path / 'card'}")
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["protocol"]["image_size_px"] == runs.shape.image_size
    assert card["protocol"].get("image_channels", 3) == runs.shape.channels
    assert ("image_channels" in card["protocol"]) == (runs.shape.channels == 1)
    found = {metric: of[next(iter(of))]["mean"] for metric, of in card["results"].items()}
    wanted = {"fid", "kid", "precision", "recall", "rfid", "psnr", "ssim", "elbo", "copies_pixels_calibrated"}
    assert set(found) >= wanted | {"copies_features_calibrated", "class_accuracy"}
    assert ("denoising_loss" in found) == (name == "latent_ddpm")
    assert np.isfinite(list(found.values())).all()
    width, height = runs.size
    assert looks_of(tmp_path / "card" / "copies_pixels.png") == ("RGB", (6 * (width + 4) - 4, 2 * (height + 4) - 4))


def test_given_pictures_are_varied_at_the_shape(runs: Runs, here: Here, tmp_path: Path) -> None:
    """Single pictures of grey ones are grey."""
    run = f"run={runs.folder / 'vae_gan'}"
    Image.new("RGB", (60, 20), "white").save(tmp_path / "strip.png")
    here(vary, run, f"image={tmp_path / 'strip.png'}", "num=2", "scale=1", f"out={tmp_path / 'variations'}")
    singles = sorted((tmp_path / "variations").glob("strip_*.png"))
    assert [path.stem for path in singles] == [
        *("strip_original", "strip_reconstruction", "strip_variation_01", "strip_variation_02"),
    ]
    assert {looks_of(path) for path in singles} == {(runs.mode, runs.size)}
    original = np.asarray(Image.open(singles[0]))
    assert (original[0] == 255).all() == (flowergen.load(runs.folder / "vae_gan").config["data"]["fit"] == "crop")

    held_out = ("split=test", "num_pictures=2", "num=3")
    here(vary, run, *held_out, "mode=interpolate", f"out={tmp_path / 'interpolation'}")
    assert looks_of(tmp_path / "interpolation" / "interpolation.gif")[1] == runs.size
    width, height = runs.size
    assert looks_of(tmp_path / "interpolation" / "interpolation.png") == ("RGB", (5 * (width + 2) - 2, height))
    for mode, more in (("reconstruct", ()), ("traverse", ("num_dims=2",)), ("arithmetic", ("plus=1", "minus=0"))):
        here(vary, run, *held_out, f"mode={mode}", *more, f"out={tmp_path / mode}")
        assert list((tmp_path / mode).glob("*.png")), mode


@pytest.mark.parametrize("name", MODELS)
def test_the_report_on_latents_has_their_shape(name: str, runs: Runs, here: Here, tmp_path: Path) -> None:
    here(latents, f"run={runs.folder / name}", f"out={tmp_path / 'latents'}")
    report = json.loads((tmp_path / "latents" / "report.json").read_text())
    _, height, width = runs.shape
    assert report["latent_shape"] == ([4, 1, 1] if name == "vae" else [4, height // 4, width // 4])


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_exported_with_its_shape(name: str, runs: Runs, here: Here, tmp_path: Path) -> None:
    """As weights; of one run also as graphs, which the command holds against the model."""
    graphs = ("onnx",) if (name, runs.shape) == ("latent_ddpm", (1, 48, 64)) else ()
    for form in ("safetensors", *graphs):
        here(export, f"run={runs.folder / name}", f"format={form}", f"out={tmp_path / form}")
        about = json.loads((tmp_path / form / "model.json").read_text())
        assert (about["image_size"], about["image_channels"]) == (runs.shape.image_size, runs.shape.channels)
        assert (tmp_path / form / f"encoder.{form}").is_file()


def test_a_shared_run_says_the_shape(runs: Runs, here: Here, tmp_path: Path) -> None:
    here(push, f"run={runs.folder / 'latent_ddpm'}", f"out={tmp_path / 'shared'}")
    page = (tmp_path / "shared" / "README.md").read_text()
    assert "# (4, {}, {}, {}) in [0, 1]".format(*runs.shape) in page
    assert f", {runs.shape}, split" in page
    assert flowergen.load(tmp_path / "shared").sample(1).shape == (1, *runs.shape)


def test_diffusion_on_pixels(command: Command, here: Here, tmp_path: Path) -> None:
    """Of grey pictures that are wider than high, by either network."""
    dit = ("model/network=dit", "model.network.hidden_size=16", "model.network.depth=1", "model.network.num_heads=2")
    own = [setting for setting in TINY_UNET if not setting.startswith("model.network.")]
    for name, settings in {"unet": TINY_UNET, "dit": (*own, *dit)}.items():
        run = tmp_path / name
        done = command("train", *TINY, *settings, "autoencoder=none", "data.image_size=[8,12]", "data.channels=1",
                       f"hydra.run.dir={run}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        here(sample, f"run={run}", "num=2", f"out={tmp_path / f'samples of {name}'}")
        pictures = (tmp_path / f"samples of {name}" / "pictures").iterdir()
        assert [looks_of(path) for path in pictures] == [("L", (12, 8))] * 2


def test_a_decoder_is_trained_on_samples_of_another_shape(runs: Runs, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("model=decoder", f"diffusion={runs.folder / 'latent_ddpm'}", "model.num_latents=12", "model.ema_decay=0.9")
    done = command("train", *TINY, *settings, f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert flowergen.load(run).sample(2).shape == (2, *runs.shape)


def test_a_run_from_before_shapes_works_as_it_did(diffusion_run: Path, here: Here, command: Command, tmp_path: Path) -> None:
    """Its configs have none of the keys; it is in colour and cropped."""
    run = tmp_path / "run"
    shutil.copytree(diffusion_run, run)
    expected = flowergen.load(run).sample(2)
    for path in run.rglob("config.yaml"):
        config = yaml.safe_load(path.read_text())
        del config["data"]["channels"], config["data"]["fit"], config["model"]["image_channels"]
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert torch.equal(flowergen.load(run).sample(2), expected)
    here(evaluate, f"run={run}", *SMALL, f"out={tmp_path / 'card'}")
    protocol = json.loads((tmp_path / "card" / "card.json").read_text())["protocol"]
    assert (protocol["image_size_px"], "image_channels" in protocol) == (32, False)
    here(vary, f"run={run}", "split=test", "mode=reconstruct", "num_pictures=1", f"out={tmp_path / 'vary'}")
    here(export, f"run={run}", "format=safetensors", f"out={tmp_path / 'export'}")
    about = json.loads((tmp_path / "export" / "model.json").read_text())
    assert (about["image_size"], about["image_channels"]) == (32, 3)
    done = command("train", f"resume={run}", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    assert flowergen.load(run / "checkpoints" / "last.ckpt").module.picture_shape == (3, 32, 32)


@pytest.mark.parametrize(("asked", "size"), [((), [20, 28]), (("image_size=[24,16]",), [24, 16]), (("image_size=20",), 20)])
def test_folders_hold_pictures_of_any_shape(asked: tuple[str, ...], size: int | list[int], here: Here, tmp_path: Path) -> None:
    """Unless a size is given, they are compared at that of the first generated one."""
    for seed, name in enumerate(("real", "new")):
        rng = np.random.default_rng(seed)
        (tmp_path / name).mkdir()
        for number in range(6):
            blots = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            blots.resize((28, 20)).save(tmp_path / name / f"{number}.png")
    folders = (f"generated={tmp_path / 'new'}", f"reference={tmp_path / 'real'}")
    here(evaluate, *folders, *asked, "extractor=efficientnet", f"out={tmp_path / 'card'}")
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["protocol"]["image_size_px"] == size
    assert np.isfinite(card["results"]["fid"]["samples"]["mean"])
