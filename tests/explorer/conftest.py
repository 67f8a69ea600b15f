"""The tiny runs, as the pages of these tests explore them."""

from pathlib import Path

import pytest

from flowergen.explorer.model import ExplorerModel


@pytest.fixture(scope="session")
def diffusion(diffusion_run: Path) -> ExplorerModel:
    """Diffusion by class on latents of 3 x 16 x 16, in three steps."""
    return ExplorerModel.load(str(diffusion_run))


@pytest.fixture(scope="session")
def autoencoder(autoencoder_run: Path) -> ExplorerModel:
    """The VAE-GAN of these latents."""
    return ExplorerModel.load(str(autoencoder_run))
