"""Which weights a run takes over from another, and which rows of classes."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.runs.build import build_module
from flowergen.runs.warm_start import start_from

VAE_GAN = ("model=vae_gan", "data.image_size=32", "model.blocks.channels=[4,8]", "model.blocks.num_blocks=[0,1]",
           "model.perceptual=discriminator", "model.discriminator.channels=4", "model.class_weight=0.1",
           "model.center_weight=0.1")  # fmt: skip
LDM = ("model=latent_ddpm", "autoencoder=none", "data.image_size=16", "model.network.channels=8",
       "model.network.multipliers=[1]", "model.network.num_blocks=1")  # fmt: skip
DIT = ("model=latent_ddpm", "model/network=dit", "autoencoder=none", "data.image_size=16", "model.network.hidden_size=16",
       "model.network.depth=1", "model.network.num_heads=2")  # fmt: skip


def built(overrides: tuple[str, ...], num_classes: int, seed: int) -> ImageModel:
    """A model whose moving average differs from its weights."""
    module = build_module(resolve(checked([*overrides, f"seed={seed}"])[0]), num_classes)
    with torch.no_grad():
        for p in module.inference_net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return module


def parent_of(module: ImageModel, class_names: list[str]) -> Any:
    return SimpleNamespace(module=module, class_names=class_names, run=SimpleNamespace(path=Path("/parent")))


def average(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return state.get(f"ema.{name.removeprefix('ema.')}", state[name])


@pytest.mark.parametrize(
    "overrides", [(), ("model.ema_decay=0.9",), VAE_GAN, LDM, DIT], ids=["vae", "ema", "gan", "unet", "dit"]
)
def test_the_same_classes_take_over_everything(overrides: tuple[str, ...]) -> None:
    """The moving average, where there is one, becomes both the weights and the new average."""
    names = ["rose", "daisy", "tulip"]
    before, now = built(overrides, 3, seed=1), built(overrides, 3, seed=2)
    theirs = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    start_from(parent_of(before, names), now, names)
    for name, tensor in now.state_dict().items():
        assert torch.equal(tensor, average(name, theirs)), name
    assert torch.equal(before.state_dict()[name], theirs[name]), "the parent stays as it is"


@pytest.mark.parametrize("overrides", [LDM, DIT], ids=["unet", "dit"])
def test_rows_of_a_denoiser_s_classes_are_matched_by_name(overrides: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before, now = built(overrides, 3, seed=1), built(overrides, 4, seed=2)
    start_from(parent_of(before, ["rose", "daisy", "tulip"]), now, ["tulip", "aster", "rose", "lily"])
    theirs = before.inference_net.embed.label.weight  # type: ignore[union-attr]
    mean = theirs[:3].mean(0)
    for net in (now.net, now.inference_net):  # type: ignore[attr-defined]
        assert torch.equal(net.embed.label.weight, torch.stack((theirs[2], mean, theirs[0], mean, theirs[3])))  # last: no class
    assert "2 of 4 classes have a counterpart of the same name; the others start from the mean of the classes" in caplog.text


def test_the_same_number_of_other_classes_is_not_taken_for_the_same_classes() -> None:
    before, now = built(DIT, 2, seed=1), built(DIT, 2, seed=2)
    start_from(parent_of(before, ["rose", "daisy"]), now, ["daisy", "rose"])
    theirs, ours = (module.inference_net.embed.label.weight for module in (before, now))  # type: ignore[union-attr]
    assert torch.equal(ours, theirs[[1, 0, 2]])


def test_a_parent_without_classes_gives_each_class_its_row_of_no_class() -> None:
    before, now = built(DIT, 0, seed=1), built(DIT, 2, seed=2)
    start_from(parent_of(before, []), now, ["rose", "daisy"])
    theirs, ours = (module.inference_net.embed.label.weight for module in (before, now))  # type: ignore[union-attr]
    assert torch.equal(ours, theirs[[0, 0, 0]])


def test_heads_and_centres_of_a_vae_gan_are_matched_by_name() -> None:
    before, now = built(VAE_GAN, 2, seed=1), built(VAE_GAN, 2, seed=2)
    start_from(parent_of(before, ["rose", "daisy"]), now, ["daisy", "lily"])
    for name in ("centers", "class_head.weight", "class_head.bias"):
        theirs, ours = before.get_parameter(name), now.get_parameter(name)
        assert torch.equal(ours, torch.stack((theirs[1], theirs.mean(0)))), name


def test_other_shapes_keep_their_initial_values_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before, now = built((), 0, seed=1), built(("model.latent_dim=7",), 0, seed=2)
    initial = {name: tensor.clone() for name, tensor in now.state_dict().items()}
    start_from(parent_of(before, []), now, [])
    differ = [name for name, tensor in before.state_dict().items() if tensor.shape != initial[name].shape]
    assert differ
    for name, tensor in now.state_dict().items():
        assert torch.equal(tensor, initial[name] if name in differ else before.state_dict()[name]), name
    assert f"{len(differ)} tensors have no counterpart of the same shape" in caplog.text


def test_models_that_cannot_be_a_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ldm, vae = built(LDM, 2, seed=1), built((), 2, seed=1)
    with pytest.raises(UserError, match="is a VAEModule, not a LatentDDPMModule: leave model= out"):
        start_from(parent_of(vae, []), ldm, [])
    other = built(LDM, 2, seed=2)
    other.autoencoder_hash = "another"  # type: ignore[assignment]
    with pytest.raises(UserError, match="denoises the latents of another autoencoder: leave autoencoder= out"):
        start_from(parent_of(other, []), ldm, [])
    monkeypatch.setattr(vae, "state_dict", lambda: {"x": nn.Parameter(torch.zeros(1))})
    with pytest.raises(UserError, match="no weights of the same names and shapes"):
        start_from(parent_of(vae, []), built((), 2, seed=2), [])
