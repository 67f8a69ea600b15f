"""What only a GPU can show: ``python -m pytest -m gpu``. Without a GPU all of it is skipped, and says so.

It has not been run on one, and how long it takes is not measured.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.modules.image_model import ImageModel
from flowergen.randomness import normal, uniform
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.latents import prepare_latents
from flowergen.runs.loading import load_previous_stage, load_run
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer, resolve_device
from tests.conftest import TINY_DECODER, TINY_LATENT_DDPM, TINY_RUN, TINY_VAE_GAN, run_command
from tests.tiny_models import diffusion

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: training and sampling on one are NOT TESTED here"),
]
FAMILIES = {
    "vae": TINY_RUN,
    "vae_gan": TINY_VAE_GAN,
    "latent_ddpm": (*TINY_LATENT_DDPM, "autoencoder=none"),
    "decoder": TINY_DECODER,
}
QUICK = ("trainer.max_epochs=2", "trainer.limit_val_batches=0", "callbacks.images=null", "trainer.log_every_n_steps=1000")


class Watch(Callback):
    """Refuses whatever waits for the GPU, from the second step of the first epoch to the end of that epoch's last."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_last = batch_idx + 1 == trainer.num_training_batches
        torch.cuda.set_sync_debug_mode("default" if is_last or trainer.current_epoch else "error")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> list[str]:
    """The overrides of a short training run. A decoder's needs a diffusion run, which the CPU trains."""
    before = [f"diffusion={request.getfixturevalue('diffusion_run')}"] if request.param == "decoder" else []
    return [*FAMILIES[request.param], *before, "trainer.accelerator=gpu", *QUICK]


def trained(folder: Path, cache_dir: Path, family: list[str], *overrides: str, watch: bool = False) -> ImageModel:
    torch.compiler.reset()  # it gives up compiling after so many networks in a process
    config = resolve(checked([*family, f"paths.cache_dir={cache_dir}", *overrides])[0])
    data, run = build_datamodule(config), RunFolder(folder)
    data.setup()
    previous = load_previous_stage(config, run, resolve_device(config["trainer"]))
    module = build_module(config, len(data.class_names), previous.module if previous else None)
    if previous:
        prepare_latents(config, run, module, data, previous)
    trainer = build_trainer(config, run, None)
    if watch:
        trainer.callbacks.insert(0, Watch())  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data)
    return module


def is_finite(module: torch.nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in module.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_each_family_trains(family: list[str], precision: str, tmp_path: Path, cache_dir: Path) -> None:
    module = trained(tmp_path, cache_dir, family, f"trainer.precision={precision}")
    assert module.optimizer_steps == 16
    assert is_finite(module)


def test_each_family_trains_compiled(family: list[str], tmp_path: Path, cache_dir: Path) -> None:
    module = trained(tmp_path, cache_dir, family, "trainer.compile=true", "trainer.precision=bf16-mixed")
    assert module.optimizer_steps == 16
    assert is_finite(module)


@pytest.mark.parametrize("family", ["vae_gan", "latent_ddpm"], indirect=True)
def test_cuda_graphs_lose_no_gradient(family: list[str], tmp_path: Path, cache_dir: Path) -> None:
    """With manual and with automatic optimisation, the weights are near those of the same code without graphs."""
    counts = torch._dynamo.utils.counters["inductor"]
    counts.clear()
    plain, graphs = (
        torch.nn.utils.parameters_to_vector(
            trained(tmp_path / mode, cache_dir, family, f"trainer.compile={mode}", "trainer.precision=32-true").parameters()
        )
        for mode in ("true", "cuda_graphs")
    )
    assert (plain - graphs).abs().mean() < 5e-5  # each moves by up to 16 times the learning rate of 2e-4
    assert counts["cudagraph_skips"] == 0, "every compiled network is launched as a graph"
    assert counts["cudagraph_recorded_non_static_inputs"] > 0


def test_no_step_waits_for_the_gpu(family: list[str], tmp_path: Path, cache_dir: Path) -> None:
    trained(tmp_path, cache_dir, family, "trainer.precision=bf16-mixed", watch=True)


def test_fused_optimisers_are_used_and_clipped(tmp_path: Path, cache_dir: Path) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            optimizers.extend(trainer.optimizers)

    config = resolve(checked([*FAMILIES["latent_ddpm"], "trainer.accelerator=gpu", *QUICK, f"paths.cache_dir={cache_dir}"])[0])
    data = build_datamodule(config)
    data.setup()
    trainer = build_trainer(config, RunFolder(tmp_path), None)
    trainer.callbacks.append(Keep())  # type: ignore[attr-defined]
    trainer.fit(build_module(config, len(data.class_names), None), datamodule=data)
    assert config["trainer"]["gradient_clip_val"] == 1
    assert [optimizer.defaults["fused"] for optimizer in optimizers] == [True]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "decoder"], indirect=True)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    family: list[str], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """But for the decoder: adaptive average pooling, in its discriminator, has no deterministic gradient on a GPU."""
    environment = {key: value for key, value in process_environment.items() if key != "CUDA_VISIBLE_DEVICES"}
    environment |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment |= {key: value for key, value in os.environ.items() if key == "CUDA_VISIBLE_DEVICES"}
    given = [*family, "trainer.deterministic=true", "model.lr_schedule=constant"]

    def train(*arguments: str) -> None:
        done = run_command("train", *arguments, folder=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*given, f"hydra.run.dir={whole}")
    train(*given, "trainer.max_epochs=1", f"hydra.run.dir={parts}")
    train(f"resume={parts}", "trainer.max_epochs=2")
    first, second = (load_run(str(run / "checkpoints" / "last.ckpt"), "cpu").module.state_dict() for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_samples_are_those_of_the_cpu() -> None:
    module = diffusion().eval()
    labels = torch.tensor([0, 1, 2, 3])
    with torch.inference_mode():
        ours = module.decode(module.denoised(range(4), labels, 0, module.sampling))
        module = module.to("cuda")
        theirs = module.decode(module.denoised(range(4), labels, 0, module.sampling)).cpu()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-2)


def test_samples_by_cuda_graphs_are_those_without() -> None:
    """The first of the four steps warms up, the second records, and the others replay."""
    torch.compiler.reset()
    module, labels = diffusion().eval().to("cuda"), torch.tensor([0, 1, 2, 3])
    net = FastNetwork(module.inference_net, bf16=False, compiled=True, cuda_graphs=True)
    with torch.inference_mode():
        found, expected = (module.decode(module.denoised(range(4), labels, 0, module.sampling, each)) for each in (net, None))
    assert net._compiled is not None, "it compiles here"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_noise_is_a_function_of_its_key_and_of_nothing_else(draw: Callable[..., torch.Tensor]) -> None:
    device = torch.device("cuda", 0)
    key: dict[str, Any] = {"seed": 7, "step": 5, "purpose": "posterior", "device": device}
    first = draw((64, 3, 8, 8), **key)
    torch.cuda.manual_seed(1)
    torch.randn(10, device=device)
    assert torch.equal(draw((64, 3, 8, 8), **key), first)
    for other in ({"seed": 7 + 2**32}, {"step": 6}, {"purpose": "prior"}):
        assert not torch.equal(draw((64, 3, 8, 8), **key | other), first)
