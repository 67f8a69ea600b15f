"""data.batch_size=auto."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from flowergen.app.train_command import checked, prepare_train
from flowergen.config.overrides import resolve
from flowergen.errors import Stopped, UserError
from flowergen.modules.vae import VAEModule
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.runs import batch_size
from flowergen.runs.batch_size import candidates, largest_fitting_size, resolve_batch_size
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from tests.conftest import TINY_RUN, TINY_VAE_GAN

SIZES = [8, 16, 32, 64]


@pytest.mark.parametrize(("num_train", "unit"), [(64, 1), (100, 3), (3200, 1), (10**6, 1), (10**6, 7), (3200, 24), (5, 4)])
def test_candidates_double_and_are_multiples_within_their_bounds(num_train: int, unit: int) -> None:
    sizes = candidates(num_train, unit)
    assert all(b == 2 * a for a, b in itertools.pairwise(sizes))
    assert all(size % unit == 0 for size in sizes)
    most = min(512, num_train / 16)
    assert sizes == [unit] or sizes[-1] <= most < 2 * sizes[-1] or 2 * sizes[-1] > 512


def test_a_gpu_is_filled_until_it_refuses() -> None:
    """100 bytes a picture in 10,000: 64 take 6,400, in 4,500 there is no room for 64, in 3,500 32 are more than 80%."""
    for available, expected in ((10_000, 64), (4500, 32), (3500, 16)):

        def memory_growth(size: int, most: int = available) -> int | None:
            return 100 * size if 100 * size <= most else None

        assert largest_fitting_size(SIZES, memory_growth, available, predicts=False)[0] == expected
    with pytest.raises(UserError, match="not even batches of 8"):
        largest_fitting_size(SIZES, lambda size: None, 10, predicts=False)


def test_a_cpu_is_never_asked_for_what_it_does_not_have() -> None:
    """The process would be killed: no size is tried whose forecast, twice what half of it took, is beyond 80%."""
    for available in (500, 1500, 3000, 5000, 9000):
        tried: list[int] = []

        def memory_growth(size: int, tried: list[int] = tried) -> int:
            tried.append(size)
            return 100 * size

        chosen, why = largest_fitting_size(SIZES, memory_growth, available, predicts=True)
        assert chosen == tried[-1]
        assert all(100 * size <= 0.8 * available for size in tried[1:])
        assert ("more than 80%" in why) == (chosen < 64)


def settled(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], Any, Any]:
    config = resolve(checked([*overrides, "data.batch_size=auto", "data.num_images=400"])[0])
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, len(data.class_names))
    assert resolve_batch_size(config, RunFolder(tmp_path), data, module)
    return config, data, module


def test_the_number_goes_into_config_and_data_and_the_model_stays_as_it_was(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """320 training pictures: 16 at most."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    config, data, module = settled(tmp_path, *TINY_RUN, "trainer.accumulate_grad_batches=2", "model.norm=batch")
    assert config["data"]["batch_size"] == data.batch_size == 16
    assert module.optimizer_steps == 0
    untouched = build_module(config, len(data.class_names))
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name
    assert not resolve_batch_size(config, RunFolder(tmp_path), data, module)
    assert not list(tmp_path.iterdir())


def test_it_is_tried_with_the_full_adversarial_loss(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose gradients the generator does not keep before the start that the run has."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    factors = []
    original = VAEGANModule._adversarial_step

    def recorded(self: VAEGANModule, *args: Any) -> Any:
        factors.append(self.adversarial_factor)
        return original(self, *args)

    monkeypatch.setattr(VAEGANModule, "_adversarial_step", recorded)
    settled(tmp_path, *TINY_VAE_GAN, "model.adversarial_start_steps=1000")
    assert factors == [0.5] * 4  # two steps of 8 pictures, two of 16


def test_a_signal_in_the_last_step_of_a_trial_is_not_lost(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second of two steps: the trial of another size does not begin."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    sizes = []
    original = VAEModule.training_step

    def asked_to_stop(self: VAEModule, batch: Any, batch_idx: int) -> Any:
        sizes.append(len(batch.label))
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(VAEModule, "training_step", asked_to_stop)
    with pytest.raises(Stopped, match="SIGTERM"):
        settled(tmp_path, *TINY_RUN)
    assert sizes == [8, 8]


def test_several_devices_share_a_batch(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    tried = []
    monkeypatch.setattr(batch_size, "_train", lambda config, data, module, size: tried.append(size))
    config, _, _ = settled(tmp_path, *TINY_RUN, "trainer=ddp_cpu")
    assert tried == [4, 8]
    assert config["data"]["batch_size"] == 16


def test_other_processes_read_what_the_first_has_found(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    run = RunFolder(tmp_path)
    for stored in ("auto", 16):
        config = resolve(checked([*TINY_RUN, "data.batch_size=auto"])[0])
        run.store({**config, "data": config["data"] | {"batch_size": stored}}, [])
        data = build_datamodule(config)
        data.setup()
        with monkeypatch.context() as other:
            other.setenv("WORLD_SIZE", "2")
            other.setenv("LOCAL_RANK", "1")
            module = build_module(config, len(data.class_names))
            if stored == "auto":
                with pytest.raises(UserError, match="give a number"):
                    resolve_batch_size(config, run, data, module)
            else:
                resolve_batch_size(config, run, data, module)
                assert data.batch_size == 16


def test_a_resumed_run_keeps_the_number(tmp_path: Path) -> None:
    """overrides.yaml says auto, config.yaml what was found."""
    run = RunFolder(tmp_path)
    overrides = ["data.batch_size=auto", "model.beta=2"]
    config = resolve(checked(overrides)[0])
    run.store({**config, "data": config["data"] | {"batch_size": 128}}, overrides)
    prepared = prepare_train([f"resume={tmp_path}", "trainer.max_epochs=60"])
    assert resolve(checked([line for line in prepared if not line.startswith("hydra.")])[0])["data"]["batch_size"] == 128
    with pytest.raises(UserError, match=r"data\.batch_size was 128 and is 64"):
        prepare_train([f"resume={tmp_path}", "data.batch_size=64"])
