"""What the tests share: tiny pictures, tiny runs, and commands as real processes."""

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models.vgg import cfgs, make_layers

from flowergen.config.schema_data import CelebAAttribute
from tests.warm_process import warm_run

torch.set_num_threads(1)  # there is a test process for each core: threads of their own would only get in each other's way

TINY_RUN = (
    "data.num_images=80",
    "data.num_classes=4",
    "data.image_size=28",
    "data.batch_size=8",
    "model.channels=[4,8]",
    "model.latent_dim=4",
    "model.norm=group",
    "trainer.accelerator=cpu",
    "trainer.num_threads=1",
    "trainer.log_every_n_steps=3",
    "trainer.max_epochs=2",
    "callbacks.images.num_samples=4",
    "callbacks.images.num_reconstructions=4",
)

TINY_VAE_GAN = (
    "model=vae_gan",
    "data.num_images=80",
    "data.num_classes=4",
    "data.image_size=32",
    "data.batch_size=8",  # 8 steps an epoch
    "model.blocks.channels=[4,8]",
    "model.blocks.num_blocks=[0,1]",
    "model.perceptual=discriminator",
    "model.discriminator.channels=4",
    "model.adversarial_weight=0.5",
    "model.adversarial_start_steps=3",
    "model.adversarial_ramp_steps=4",
    "model.class_weight=0.1",
    "model.center_weight=0.1",
    "model.ema_decay=0.9",
    "trainer.accelerator=cpu",
    "trainer.num_threads=1",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=3",
    "callbacks.images.num_samples=4",
    "callbacks.images.num_reconstructions=4",
    "callbacks.images.every_epochs=3",
)

TINY_LATENT_DDPM = (
    "model=latent_ddpm",
    "data.num_images=80",
    "data.num_classes=4",
    "data.batch_size=8",  # 8 steps an epoch
    "model.network.channels=16",
    "model.network.multipliers=[1,2]",
    "model.network.num_blocks=1",
    "model.sampling.steps=3",
    "model.lr_schedule=cosine",
    "model.lr_warmup_steps=3",
    "model.ema_decay=0.9",
    "trainer.gradient_clip_val=1",
    "trainer.accelerator=cpu",
    "trainer.num_threads=1",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=2",
    "callbacks.images.num_samples=4",
    "callbacks.images.num_reconstructions=4",
    "callbacks.images.every_epochs=2",
)

TINY_DECODER = (
    "model=decoder",
    "data.num_images=80",
    "data.num_classes=4",
    "data.batch_size=8",  # 8 steps an epoch
    "model.num_latents=12",
    "model.ema_decay=0.9",
    "trainer.max_epochs=2",
    "trainer.gradient_clip_val=1",
    "callbacks.images.num_samples=4",
)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded pictures, shared by the tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the convolutions of torchvision's VGG-16, with random weights, under their official name."""
    folder = tmp_path_factory.mktemp("weights")
    features = make_layers(cfgs["D"], batch_norm=False)
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, folder / "vgg16-397923af.pth")
    return folder


class UntrainedInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network, which otherwise insists on a file of weights."""

    def load_state_dict(self, *args, **kwargs):
        """Leave the weights as they are."""


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for the Inception network of FID, as torch-fidelity loads it."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    network = UntrainedInception("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.dim() == 4:
            torch.nn.init.kaiming_normal_(weight, generator=generator)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def process_environment(cache_dir: Path) -> dict[str, str]:
    """The environment of a command: nothing of the outer session, one thread."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("FLOWERGEN_", "PL_", "HYDRA_"))}
    return keep | {"FLOWERGEN_CACHE_DIR": str(cache_dir), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_command(
    name: str, *arguments: str, folder: Path, environment: dict[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m flowergen.NAME ARGUMENTS`` in a folder."""
    return warm_run(f"flowergen.{name}" if name else "flowergen.__main__", arguments, folder, environment, timeout)


@pytest.fixture
def command(tmp_path: Path, process_environment: dict[str, str]) -> Command:
    """``command("train", "model.beta=2")`` runs ``python -m flowergen.train model.beta=2`` in a folder of its own."""
    return partial(run_command, folder=tmp_path, environment=process_environment)


@pytest.fixture(scope="session")
def autoencoder_run(tmp_path_factory: pytest.TempPathFactory, process_environment: dict[str, str]) -> Path:
    """A finished VAE-GAN run, shared by the tests of a session: copy it before you harm it."""
    run = tmp_path_factory.mktemp("autoencoder") / "run"
    arguments = [*TINY_VAE_GAN, "model.latent.channels=3", "trainer.max_epochs=1", f"hydra.run.dir={run}"]
    done = run_command("train", *arguments, folder=run.parent, environment=process_environment)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def diffusion_run(tmp_path_factory: pytest.TempPathFactory, autoencoder_run: Path, process_environment: dict[str, str]) -> Path:
    """A finished diffusion run on its latents, likewise."""
    run = tmp_path_factory.mktemp("diffusion") / "run"
    arguments = [*TINY_LATENT_DDPM, f"autoencoder={autoencoder_run}", f"hydra.run.dir={run}"]
    done = run_command("train", *arguments, folder=run.parent, environment=process_environment)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def tiny_run() -> tuple[str, ...]:
    """Overrides for a run of a few seconds."""
    return TINY_RUN


@pytest.fixture
def tiny_vae_gan() -> tuple[str, ...]:
    """The same with adversarial training, which starts in the first of three epochs."""
    return TINY_VAE_GAN


@pytest.fixture
def tiny_latent_ddpm() -> tuple[str, ...]:
    """Diffusion on the latents of ``autoencoder_run``, or on pixels."""
    return TINY_LATENT_DDPM


@pytest.fixture
def photographs() -> Path:
    """The folder of real photographs; tests that use it are marked ``real_data``."""
    if not os.environ.get("FLOWERGEN_TEST_DATA"):
        pytest.skip("no photographs: FLOWERGEN_TEST_DATA is not set")
    return Path(os.environ["FLOWERGEN_TEST_DATA"])


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Sixty small pictures of several sizes in two class folders."""
    root = tmp_path / "my pictures"
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = root / ("roses" if number % 2 else "tulips")
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 30 + number % 7, 40 - number % 5
        picture = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"IMG ({number}).png")
    return root


def save_grey(path: Path, number: int, size: tuple[int, int] = (20, 24)) -> None:
    """A picture whose grey level is its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), number % 256, dtype=np.uint8)).save(path)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Torchvision's layout of CelebA: 60 faces of 178 x 218, the odd ones smile; 40 train, 10 val, 10 test."""
    folder = tmp_path / "data" / "celeba"
    attributes = list(CelebAAttribute.__args__)  # type: ignore[attr-defined]
    partition, rows = [], []
    for number in range(1, 61):
        name = f"{number:06d}.jpg"
        save_grey(folder / "img_align_celeba" / name, number, (218, 178))
        partition.append(f"{name} {0 if number <= 40 else 1 if number <= 50 else 2}")
        values = ["1" if attribute == "Smiling" and number % 2 else "-1" for attribute in attributes]
        rows.append(f"{name}  " + " ".join(f"{value:>2}" for value in values))
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    (folder / "list_attr_celeba.txt").write_text("\n".join(["60", " ".join(attributes) + " ", *rows]) + "\n")
    return tmp_path / "data"
