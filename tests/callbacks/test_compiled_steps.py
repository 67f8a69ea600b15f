"""trainer.compile, by a compiler that counts and changes nothing: the real one takes a minute."""

from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flowergen.app.train_command import checked
from flowergen.callbacks import budget
from flowergen.callbacks.compiled_steps import CompiledSteps
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.conftest import TINY_LATENT_DDPM, TINY_RUN, TINY_VAE_GAN

RUNS = {
    "vae": TINY_RUN,
    "vae_gan": (*TINY_VAE_GAN, "trainer.max_epochs=1"),
    "latent_ddpm": (
        *TINY_LATENT_DDPM,
        "autoencoder=none",
        "data.image_size=8",
        "model.network.multipliers=[1]",
        "trainer.max_epochs=1",
    ),
}


def train(run: Path, *overrides: str, resume: Path | None = None) -> ImageModel:
    config = resolve(checked(overrides)[0])
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, len(data.class_names))
    build_trainer(config, RunFolder(run), None).fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("model", RUNS)
def test_compiled_runs_are_the_same_runs(model: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code is called in training steps alone, and checkpoints go both ways."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    torch.compiler.reset()
    modes: list[bool] = []

    def counting(graph: torch.fx.GraphModule, example: Any) -> Any:
        def run(*args: Any) -> Any:
            modes.append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    monkeypatch.setattr(nn.Module, "compile", partialmethod(_compile, backend=counting))
    options = [*RUNS[model], "data.num_images=40"]
    compiled, plain = train(tmp_path / "compiled", *options, "trainer.compile=true"), train(tmp_path / "plain", *options)
    assert modes
    assert all(modes)
    assert compiled.optimizer_steps == plain.optimizer_steps
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, compiled.state_dict()[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    if model != "vae":  # one will do
        return
    more = "trainer.max_epochs=3"
    for source, target in (("compiled", "false"), ("plain", "true")):
        last = tmp_path / source / "checkpoints" / "last.ckpt"
        resumed = train(tmp_path / f"from_{source}", *options, more, f"trainer.compile={target}", resume=last)
        assert resumed.optimizer_steps > plain.optimizer_steps


def test_cuda_graphs_are_asked_of_the_compiler_and_each_step_is_marked(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a compiler that does nothing; the networks themselves run on the CPU."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    modes, marks = list[str](), list[str]()

    def compile_(network: nn.Module, mode: str) -> None:
        modes.append(mode)

    monkeypatch.setattr("flowergen.runs.trainer.resolve_device", lambda _: "cuda:0")
    monkeypatch.setattr(nn.Module, "compile", compile_)
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(torch._dynamo.eval_frame._stance.stance)
    )
    module = train(tmp_path, *TINY_RUN, "data.num_images=40", "trainer.compile=cuda_graphs")
    assert modes == ["reduce-overhead"] * 2  # encoder and decoder
    assert marks == ["default"] * module.optimizer_steps


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_gradients_of_cuda_graphs_are_dropped_after_a_step(cuda_graphs: bool) -> None:
    """The next step overwrites their memory."""
    module: Any = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    trainer: Any = SimpleNamespace(optimizers=[torch.optim.SGD(module.parameters())])
    callback = CompiledSteps(cuda_graphs)
    callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.teardown(trainer, module, "fit")
    assert (module.weight.grad is None) == cuda_graphs


def test_what_a_budget_times_is_not_compiled(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation, pictures and latents of a model without a moving average, in the middle of training."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    config = resolve(checked([*TINY_RUN, "trainer.compile=true", "trainer.budget=1h"])[0])
    data = build_datamodule(config)
    data.setup()
    trainer = build_trainer(config, RunFolder(tmp_path), None)
    stances = []

    def time_end_of_run(*args: Any) -> None:
        stances.append(torch._dynamo.eval_frame._stance.stance)
        raise UserError("seen")

    monkeypatch.setattr(budget, "time_end_of_run", time_end_of_run)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(_compile, backend="eager"))
    with pytest.raises(UserError, match="seen"):
        trainer.fit(build_module(config, len(data.class_names)), datamodule=data)
    assert stances == ["force_eager"]


def _compile(network: nn.Module, backend: Any, mode: str) -> None:
    assert mode == "default"
    network._compiled_call_impl = torch.compile(network._call_impl, backend=backend)
