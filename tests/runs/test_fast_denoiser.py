"""Which denoiser many samples are drawn with."""

from pathlib import Path

import pytest
import torch

from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.sampling import WORTH_COMPILING, fast_denoiser
from tests.tiny_models import TinyAutoencoder, diffusion


def trained(module: ImageModel, precision: str, compiled: bool | str) -> LoadedModel:
    trainer = {"precision": precision, "accelerator": "cpu", "compile": compiled}
    return LoadedModel(module, {"trainer": trainer}, "", [], RunFolder(Path("run")))


@pytest.mark.parametrize(("precision", "compiled"), [("bf16-mixed", True), ("bf16-mixed", False), ("32-true", True)])
def test_it_is_evaluated_as_it_was_trained(precision: str, compiled: bool) -> None:
    net = fast_denoiser(trained(diffusion(), precision, compiled), WORTH_COMPILING)
    assert net is not None
    assert net.bf16 == (precision == "bf16-mixed")
    assert (net._compiled is not None) == compiled


def test_few_samples_are_not_worth_compiling() -> None:
    few = fast_denoiser(trained(diffusion(), "bf16-mixed", True), WORTH_COMPILING - 1)
    assert few is not None
    assert few._compiled is None
    assert fast_denoiser(trained(diffusion(), "auto", True), WORTH_COMPILING - 1) is None, "nothing to gain"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cuda_graphs_are_for_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, a run that was trained with them is compiled."""
    model = trained(diffusion(), "32-true", "cuda_graphs")
    monkeypatch.setattr(LatentDDPMModule, "device", torch.device(device))
    net = fast_denoiser(model, WORTH_COMPILING)
    assert net is not None
    assert net._compiled is not None
    assert net.cuda_graphs == (device == "cuda")


def test_autoencoders_have_none() -> None:
    assert fast_denoiser(trained(TinyAutoencoder(), "bf16-mixed", True), WORTH_COMPILING) is None
