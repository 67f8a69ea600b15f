"""Phase 2: signatures, optimisers, hardware; and one real step of everything that can be chosen."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowergen.config import conf_dir
from flowergen.config.build import build_datamodule, build_module, build_trainer, read_checkpoint, resolve_precision
from flowergen.config.command import checked
from flowergen.config.overrides import resolve
from flowergen.config.run_folder import RunFolder
from flowergen.errors import UserError


@pytest.fixture(autouse=True)
def outside_weights(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERGEN_WEIGHTS_DIR", str(weights_dir))


def composed(*overrides: str) -> dict[str, Any]:
    return resolve(checked(overrides)[0])


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))


DIFFUSION = ("latent_ddpm", "flowers_ldm", "flowers_ldm_128", "landscape_ldm", "flowers_pixel_ddpm", "ldm_tiny")


def on_pixels(choice: str) -> list[str]:
    """Diffusion needs no other run there; one sample of one step, as the network of a recipe is a large one."""
    few = ["autoencoder=none", "data.image_size=32", "model.sampling.steps=1", "callbacks.images.num_samples=1"]
    return few if choice in DIFFUSION else []


def train_one_step(run: Path, *overrides: str) -> None:
    config = composed(*overrides, "debug=tiny", "data.batch_size=2", "trainer.limit_train_batches=1", "trainer.accelerator=cpu")
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, num_classes=len(data.class_names))
    before = [p.detach().clone() for p in module.parameters()]
    build_trainer(config, RunFolder(run), None).fit(module, datamodule=data)
    assert module.optimizer_steps == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("model", options("model"))
def test_every_model_trains_a_step_on_every_data_set(
    model: str, tmp_path: Path, cache_dir: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flowers102 through its own data module where FLOWERGEN_TEST_DATA has it, see test_flowers102_trains_a_step."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    chosen = (f"model={model}", *on_pixels(model))
    train_one_step(tmp_path / "a", *chosen, "data=procedural", "data.num_images=40", "data.image_size=28")
    for data in ("image_folder", "celeba", "dogs"):
        own = (f"data={data}", f"data.root={picture_folder}", "data.image_size=28")
        train_one_step(tmp_path / data, *chosen, *own)
    for number, picture in enumerate(sorted(picture_folder.rglob("*.png"))):
        (picture_folder / "Training Data").mkdir(exist_ok=True)
        (picture_folder / "Testing Data").mkdir(exist_ok=True)
        picture.rename(picture_folder / ("Testing Data" if number % 5 == 0 else "Training Data") / picture.name)
    for folder in ("roses", "tulips"):
        (picture_folder / folder).rmdir()
    own = ("data=landscapes", f"data.root={picture_folder}", "data.image_size=28")
    train_one_step(tmp_path / "landscapes", *chosen, *own)


@pytest.mark.parametrize("options", [("model.divergence=mmd", "model.beta=100"), ("model.residual_blocks=1",)])
def test_the_vae_s_other_choices_train_a_step(
    options: tuple[str, ...], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    train_one_step(tmp_path, "data.num_images=40", "data.image_size=28", *options)


@pytest.mark.real_data
@pytest.mark.parametrize("model", options("model"))
def test_flowers102_trains_a_step(
    model: str, tmp_path: Path, cache_dir: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    own = ("data=flowers102", f"data.root={photographs / 'flowers102_64px'}")
    train_one_step(tmp_path, f"model={model}", *own, *on_pixels(model))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_recipe_trains_a_step(
    experiment: str, tmp_path: Path, cache_dir: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    own = ("data=image_folder", f"data.root={picture_folder}")
    train_one_step(tmp_path / "run", f"experiment={experiment}", *own, *on_pixels(experiment))


def test_a_model_of_ones_own_is_held_against_its_signature() -> None:
    config = composed()
    config["model"]["betta"] = 3
    with pytest.raises(UserError, match=r"model: VAEModule: .*betta.*it takes .*beta"):
        build_module(config, num_classes=4)
    config["model"] = {"_target_": "no.such.Model"}
    with pytest.raises(UserError, match=r"no\.such\.Model cannot be imported"):
        build_module(config, num_classes=4)


def test_a_callback_without_a_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks\.mine needs a _target_"):
        build_trainer(composed("+callbacks.mine={a:1}"), RunFolder(tmp_path), None)


def test_an_optimiser_that_refuses_its_arguments_is_found_before_training() -> None:
    """``_partial_`` would let it pass until it is called."""
    config = composed()
    config["model"]["optimizer"]["_target_"] = "torch.optim.SGD"
    config["model"]["optimizer"]["betas"] = [0.9, 0.99]
    with pytest.raises(UserError, match=r"model\.optimizer: SGD: .*betas"):
        build_module(config, num_classes=4)


def test_a_gpu_that_is_not_there_is_named_in_a_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UserError, match="trainer: "):
        build_trainer(composed("trainer.accelerator=gpu"), RunFolder(tmp_path), None)


def test_precision_is_float32_on_a_cpu_and_what_the_gpu_has_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", "cpu") == "32-true"
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, precision in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert resolve_precision("auto", "auto") == precision


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x02.", "foreign"])
def test_a_foreign_or_truncated_checkpoint_is_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "last.ckpt"
    if content == "foreign":
        torch.save({"weights": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"last\.ckpt"):
        read_checkpoint(path)
