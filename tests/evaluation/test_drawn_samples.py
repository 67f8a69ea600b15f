"""Samples to train on, drawn once."""

from pathlib import Path

import pytest
import torch

from flowergen.evaluation import drawn_samples
from flowergen.evaluation.drawn_samples import FIRST_INDEX, cached_samples
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.modules.latent_ddpm import LatentDDPMModule
from tests.tiny_models import diffusion, drawn


def test_they_are_the_model_s_own_samples_under_numbers_that_no_command_draws(tmp_path: Path) -> None:
    model, data = diffusion(), drawn(tmp_path)
    latents, labels = cached_samples(model, data, 5, tmp_path)
    with torch.inference_mode():
        alone = model.denoised([FIRST_INDEX + 3], labels[3:4], model.seed, model.sampling)
    torch.testing.assert_close(latents[3:4], alone, rtol=1e-4, atol=1e-4)
    assert latents.shape == (5, 2, 4, 4)
    assert set(labels.tolist()) <= {0, 1, 2}


def test_their_classes_are_as_frequent_as_in_training_and_none_where_there_are_none(tmp_path: Path) -> None:
    model, data = diffusion(), drawn(tmp_path)
    for row in data.rows["train"]:
        data.pictures.labels[row] = 2
    assert cached_samples(model, data, 4, tmp_path)[1].tolist() == [2, 2, 2, 2]
    unconditional = diffusion(num_classes=0)
    assert cached_samples(unconditional, data, 3, tmp_path)[1].tolist() == [0, 0, 0], "K stands for no class"


def test_they_are_drawn_once_and_again_where_the_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, data, calls = diffusion(), drawn(tmp_path), list[int]()
    denoised = LatentDDPMModule.denoised

    def counted(self: LatentDDPMModule, *arguments: object) -> torch.Tensor:
        calls.append(1)
        return denoised(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LatentDDPMModule, "denoised", counted)
    monkeypatch.setattr(drawn_samples, "CHUNK_SIZE", 2)
    first, _ = cached_samples(model, data, 3, tmp_path)
    again, _ = cached_samples(model, data, 3, tmp_path)
    assert len(calls) == 2
    assert torch.equal(first, again)
    (file,) = tmp_path.glob("tiny_samples_*/latents.npy")
    file.write_bytes(file.read_bytes()[:-4])
    repaired, _ = cached_samples(model, data, 3, tmp_path)
    assert len(calls) == 4
    assert "is damaged" in caplog.text
    assert torch.equal(first, repaired)
    model.sampling = type(model.sampling)(**{**model.sampling.__dict__, "guidance_scale": 1.0})
    assert not torch.equal(cached_samples(model, data, 3, tmp_path)[0], first), "of another way of sampling"


def test_those_drawn_in_bf16_are_cached_apart(tmp_path: Path) -> None:
    model, data = diffusion(), drawn(tmp_path)
    plain, _ = cached_samples(model, data, 3, tmp_path)
    rounded, _ = cached_samples(model, data, 3, tmp_path, FastNetwork(model.inference_net, bf16=True, compiled=False))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).abs().mean() < 0.1 * plain.std()
    assert len(list(tmp_path.glob("tiny_samples_*/latents.npy"))) == 2
