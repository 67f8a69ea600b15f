"""The tabs of each family of models, down to grey pictures, flat latents and diffusion on pixels."""

from pathlib import Path
from typing import Any

import pytest

from flowergen.explorer.model import ExplorerModel
from tests.conftest import TINY_LATENT_DDPM, TINY_RUN, run_command
from tests.explorer.serving import Visitor, gradio_or_skip, served

pytestmark = pytest.mark.slow
RUNS = {
    "vae": (*TINY_RUN, "data.channels=1", "trainer.max_epochs=1"),
    "pixels": (*TINY_LATENT_DDPM, "autoencoder=none", "data.image_size=16", "trainer.max_epochs=1"),
}


def trained(name: str, folder: Path, environment: dict[str, str]) -> ExplorerModel:
    done = run_command("train", *RUNS[name], f"hydra.run.dir={folder / name}", folder=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    return ExplorerModel.load(str(folder / name))


def tabs_of(visitor: Visitor) -> list[str]:
    return [block["props"]["label"] for block in visitor.config["components"] if block["type"] == "tabitem"]


def test_tabs_fit_the_family(
    diffusion: ExplorerModel, autoencoder: ExplorerModel, tmp_path: Path, process_environment: dict[str, str]
) -> None:
    gradio_or_skip()
    vae, pixels = (trained(name, tmp_path, process_environment) for name in RUNS)
    generate: list[Any] = [2, 0, []]
    denoise = [*generate, "ddpm", 2, 1, 0, 1, "the noisy picture"]
    every, of_diffusion = ["Generate", "Edit", "Run"], ["Image to image", "Inpaint"]
    of_latents = ["Vary", "Traverse", "Mix", "Map"]
    for explorer, tabs, asked in (
        (diffusion, [*every, *of_latents, *of_diffusion], denoise),
        (autoencoder, [*every, *of_latents], generate),
        (vae, [*every, *of_latents], generate),
        (pixels, [*every, *of_diffusion], denoise),
    ):
        with served(explorer) as address:
            visitor = Visitor(address)
            assert sorted(tabs_of(visitor)) == sorted(tabs), explorer
            result = visitor.ask("generate-button", "click", asked)
            assert result["success"], (explorer, result)
            assert "<figure>" in result["output"]["data"][0]
