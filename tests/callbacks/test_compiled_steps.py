"""trainer.compile, by a compiler that counts and changes nothing: the real one takes a minute."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowergen.app.train_command import checked
from flowergen.callbacks import budget
from flowergen.callbacks.compiled_steps import compile_parts
from flowergen.config.overrides import resolve
from flowergen.data.batch import LatentBatch
from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.nn.dit import DiT
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.conftest import TINY_LATENT_DDPM, TINY_RUN, TINY_VAE_GAN
from tests.modules import test_latent_ddpm, test_vae
from tests.tiny_models import diffusion

RUNS = {
    "vae": (*TINY_RUN, "model.beta_warmup_steps=6"),  # another beta at each step
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
    """Compiled code is called in training steps alone, and compiled in the first of them; checkpoints go both ways."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    torch.compiler.reset()
    modes: list[bool] = []
    calls_before: list[int] = []  # of compiled code, for each graph when it is compiled

    def counting(graph: torch.fx.GraphModule, example: Any) -> Any:
        calls_before.append(len(modes))

        def run(*args: Any) -> Any:
            modes.append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    options = [*RUNS[model], "data.num_images=40"]
    compiled, plain = train(tmp_path / "compiled", *options, "trainer.compile=true"), train(tmp_path / "plain", *options)
    assert len(modes) > len(calls_before) > 0
    assert all(modes)
    assert calls_before == list(range(len(calls_before))), "none after the first step, in which each graph is called once"
    assert_restored(compiled)
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
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    module = build_module(config, len(data.class_names))
    with pytest.raises(UserError, match="seen"):
        trainer.fit(module, datamodule=data)
    assert stances == ["force_eager"]
    assert_restored(module)


def assert_restored(module: ImageModel) -> None:
    """As if it had never been compiled."""
    assert module.parts_to_compile
    assert not any(name in vars(owner) for owner, name in module.parts_to_compile)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def vae(**changes: Any) -> tuple[ImageModel, Any]:
    x = test_vae.pictures(4)
    return test_vae.make(**changes), test_latent_ddpm.batch(4)._replace(image=x)


def aligned(**changes: Any) -> tuple[ImageModel, Any]:
    module, data = diffusion(alignment_weight=0.5, **changes), test_latent_ddpm.batch(4)
    assert module.autoencoder is not None
    mean, logvar = (value.detach() for value in module.autoencoder.encode(data.image))
    return module, LatentBatch(mean, logvar, data.label, data.index, torch.rand(4, 24, 4, 4).half())


def flow() -> tuple[ImageModel, Any]:
    return diffusion(objective="flow", time_sampling="logit_normal"), test_latent_ddpm.batch(4)


MODERN = partial(DiT, patch_size=2, hidden_size=16, depth=2, num_heads=2, block="modern")
STEPS = {
    "vae": partial(vae, beta=0.7),
    "vae, learned sigma, mmd": partial(vae, reconstruction="gaussian", sigma="learned", divergence="mmd"),
    "flow": flow,
    "aligned UNet, min-SNR": partial(aligned, weighting="min_snr"),
    "aligned DiT": partial(aligned, network=MODERN),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_compiled_step_is_the_eager_one(make: Callable[[], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients, traced as for the real compiler; ``fullgraph`` refuses what would interrupt compiled code."""
    torch.compiler.reset()
    module, batch = make()
    test_latent_ddpm.drawing(module)

    def step() -> dict[str, Tensor]:
        module.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        return {"loss": loss.detach()} | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    eager = step()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    compile_parts(module)
    torch.testing.assert_close(step(), eager, rtol=1e-4, atol=1e-5)
