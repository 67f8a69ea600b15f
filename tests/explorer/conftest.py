"""The tiny runs, as the pages of these tests explore them."""

from pathlib import Path

import pytest

from flowergen.explorer.explored import Explored


@pytest.fixture(scope="session")
def diffusion(diffusion_run: Path) -> Explored:
    """Diffusion by class on latents of 3 x 16 x 16, in three steps."""
    return Explored.load(str(diffusion_run))


@pytest.fixture(scope="session")
def autoencoder(autoencoder_run: Path) -> Explored:
    """The VAE-GAN of these latents."""
    return Explored.load(str(autoencoder_run))
