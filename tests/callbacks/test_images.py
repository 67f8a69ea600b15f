"""What the grids of a training show, and that training knows nothing of them."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.app.train_command import checked
from flowergen.callbacks.evaluation import PeriodicEvaluation
from flowergen.callbacks.images import ImageGrids
from flowergen.config.overrides import resolve
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError
from flowergen.evaluation import sampling
from flowergen.evaluation.sampling import diffusion_sampler, first_samples
from flowergen.modules.image_model import ImageModel
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from flowergen.viz.grids import captioned, image_grid
from tests.conftest import TINY_RUN, TINY_VAE_GAN
from tests.tiny_models import CHANNELS, SIZE, TinyAutoencoder, diffusion, drawn

NUM = 2000  # samples, as many as moments need


class FarOff(TinyAutoencoder):
    """Its latents lie around 5; with BatchNorm, as eval mode matters to it. Keeps the latents that it has decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.decoded: list[Tensor] = []
        with torch.no_grad():
            self.encoder.bias[:CHANNELS] += 5 / 3

    def encode(self, x: Tensor) -> Any:
        return super().encode(self.norm(x))

    def decode(self, z: Tensor) -> Tensor:
        self.decoded.append(z)
        return super().decode(z)


def draw(folder: Path, model: ImageModel, data: ImageDataModule, num: int = 4) -> Path:
    """As after epoch 3."""
    trainer: Any = SimpleNamespace(datamodule=data, loggers=[], current_epoch=2, max_epochs=3, is_global_zero=True)
    ImageGrids(folder, every_epochs=5, num_reconstructions=2, num_samples=num).on_train_epoch_end(trainer, model)
    return folder / "generated_epoch_0003.png"


@pytest.mark.parametrize(("may_draw", "expected"), [(True, [2, 4, 5]), (False, [5])])
def test_a_budget_may_leave_drawing_and_evaluation_to_the_last_epoch(
    may_draw: bool, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are due after every second epoch, and after the last one in any case."""
    model, drawn_after, evaluated_after = FarOff(), list[int](), list[int]()
    model.run_state.may_draw = may_draw
    grids, evaluation = ImageGrids(tmp_path, 2, 2, 4), PeriodicEvaluation(tmp_path, 2, 4, "efficientnet", "", "fid")
    monkeypatch.setattr(grids, "draw", lambda trainer, module, epoch: drawn_after.append(epoch))

    trainer: Any = SimpleNamespace(loggers=[], datamodule=None, max_epochs=5, is_global_zero=True)

    def measure(*_: Any) -> None:
        evaluated_after.append(trainer.current_epoch + 1)
        raise UserError("seen")

    monkeypatch.setattr(evaluation, "_measure", measure)
    for trainer.current_epoch in range(5):
        for callback in (grids, evaluation):
            callback.on_train_epoch_end(trainer, model)
    assert drawn_after == evaluated_after == expected


def test_samples_lie_where_the_latents_of_training_pictures_lie(tmp_path: Path, cache_dir: Path) -> None:
    """Mean and variance of z ~ q(z|x) over the training split, without augmentation; those of N(0, I) are far from it."""
    data, model = drawn(cache_dir), FarOff()
    draw(tmp_path, model, data, NUM)
    z = torch.cat(model.decoded[1:]).flatten(1)  # the first batch are reconstructions
    assert z.shape == (NUM, CHANNELS * (SIZE // 4) ** 2)
    with torch.no_grad():
        x = torch.from_numpy(data.pictures.images[data.rows["train"]]).float() / 255
        mean, logvar = (moment.flatten(1) for moment in model.eval().encode(x))
    variance = mean.var(0) + logvar.exp().mean(0)
    assert mean.mean() > 3
    error = (z.mean(0) - mean.mean(0)) / (variance / len(x)).sqrt()
    assert error.abs().max() < 4
    assert z.var(0).sum().item() == pytest.approx(variance.sum().item(), rel=0.2)  # of 32 pictures


def test_the_picture_says_where_its_samples_come_from(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gaussian for 32 pictures, several for more; of no more pictures than it takes."""
    monkeypatch.setattr(sampling, "MAX_FITTED_IN_TRAINING", 150)
    for num, says in (
        (40, "a Gaussian fitted to 32 training latents"),
        (400, "a mixture of 2 Gaussians fitted to 150 training latents"),
    ):
        path = draw(tmp_path, FarOff(), drawn(cache_dir, num_images=num))
        pixels = np.asarray(Image.open(path))
        side = 2 * SIZE + 2
        expected = captioned(pixels[:side, :side], f"latents from {says}")
        np.testing.assert_array_equal(pixels, expected)


def test_what_cannot_be_fitted_is_said(tmp_path: Path, cache_dir: Path) -> None:
    """Latents that are not finite, and one training picture: N(0, I)."""
    broken = FarOff()
    with torch.no_grad():
        broken.encoder.weight.fill_(torch.nan)
    single = drawn(cache_dir)
    single.rows["train"] = single.rows["train"][:1]
    for model, data in ((broken, drawn(cache_dir)), (FarOff(), single)):
        pixels = np.asarray(Image.open(draw(tmp_path, model, data)))
        side = 2 * SIZE + 2
        np.testing.assert_array_equal(pixels, captioned(pixels[:side, :side], "latents from N(0, I)"))


def test_a_diffusion_model_s_picture_is_of_its_own_sampler(tmp_path: Path, cache_dir: Path) -> None:
    model = diffusion()
    sampler = diffusion_sampler(model, model.sampling, model.seed)
    pixels = np.asarray(Image.open(draw(tmp_path, model, drawn(cache_dir))))
    expected = captioned(image_grid(first_samples(sampler, 4), 2), "4 steps of dpmpp_2m, guidance 2")
    np.testing.assert_array_equal(pixels, expected)


def test_the_noise_is_the_same_every_time_and_the_weights_are_not(tmp_path: Path, cache_dir: Path) -> None:
    """The same weights give the same file; others, which encode alike, another one."""
    data, model = drawn(cache_dir), FarOff()
    first = draw(tmp_path, model, data).read_bytes()
    z = model.decoded[1]
    assert draw(tmp_path, model, data).read_bytes() == first
    with torch.no_grad():
        model.decoder.weight.mul_(1.5)
    assert draw(tmp_path, model, data).read_bytes() != first
    torch.testing.assert_close(model.decoded[-1], z, rtol=0, atol=0)


def test_drawing_changes_neither_the_model_nor_any_generator(tmp_path: Path, cache_dir: Path) -> None:
    data, model = drawn(cache_dir), FarOff().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    draw(tmp_path, model, data)
    assert model.training
    assert model.norm.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


@pytest.mark.parametrize("run", [(*TINY_RUN, "model.norm=batch"), (*TINY_VAE_GAN, "trainer.max_epochs=2")])
def test_training_is_bit_equal_with_and_without_pictures(
    run: tuple[str, ...], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    states = []
    for name, images in (("with", "callbacks.images.every_epochs=1"), ("without", "callbacks.images=null")):
        quiet = ("logger=none", "callbacks.loss_plot=null", "callbacks.hparams=null", "data.color_jitter=0.2")
        config = resolve(checked([*run, *quiet, images])[0])
        data = build_datamodule(config)
        data.setup()
        module = build_module(config, len(data.class_names))
        trainer = build_trainer(config, RunFolder(tmp_path / name), None)
        trainer.fit(module, datamodule=data)
        assert len(list((tmp_path / name).glob("images/generated_epoch_*.png"))) == 2 * (name == "with")
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        states.append((module.state_dict(), optimizers, dict(trainer.callback_metrics)))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
