"""Training and editing from Python."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import flowergen
from flowergen import UserError
from flowergen.evaluation.latent_edits import decode, encode
from flowergen.viz.pictures import Pictures
from tests.conftest import TINY_RUN

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(process_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in process_environment.items():
        monkeypatch.setenv(key, value)


def test_fit_trains_prints_resumes_and_loads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = flowergen.fit(["name=mine", *TINY_RUN, "trainer.max_epochs=1"])
    assert model.run.path.parent == tmp_path / "outputs" / "mine"
    assert "epoch 1/1" in capsys.readouterr().out
    steps, samples = model.module.optimizer_steps, model.sample(2)
    again = flowergen.fit([f"resume={model.run.path}", "trainer.max_epochs=2"])
    assert again.run.path == model.run.path
    assert again.module.optimizer_steps == 2 * steps
    named = flowergen.fit([*TINY_RUN, "trainer.max_epochs=1", "hydra.run.dir=my run"])
    assert named.run.path == tmp_path / "my run"
    assert torch.equal(named.sample(2), samples)


def test_mistakes_are_user_errors_before_anything_is_trained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for overrides, words in {
        ("model=vea",): "did you mean vae?",
        ("model.bta=2",): "did you mean model.beta?",
        ("-m", "model.beta=1,2"): "takes key=value only, not -m",
        ("resume=typo",): "resume=",
    }.items():
        with pytest.raises(UserError, match=words):
            flowergen.fit(overrides)
    assert not (tmp_path / "outputs").exists()
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="gpu"):  # found by the process
        flowergen.fit([*TINY_RUN, "trainer.accelerator=gpu"])


def test_an_interrupt_saves_and_says_how_to_continue(tmp_path: Path) -> None:
    """In a process of its own, as a notebook's kernel is interrupted."""
    arguments = [*TINY_RUN, "trainer.max_epochs=1000", "hydra.run.dir=run"]
    script = f"""
import flowergen
try:
    flowergen.fit({arguments!r})
except flowergen.UserError as error:
    print("caught", error)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == f"caught stopped; continue with fit(['resume={tmp_path / 'run'}'])"
    steps = flowergen.load(tmp_path / "run").module.optimizer_steps
    assert steps > 0
    epochs = -(-steps // 8)
    model = flowergen.fit(["resume=run", f"trainer.max_epochs={epochs}"])
    assert model.module.optimizer_steps >= steps


def test_edits_from_python(diffusion_run: Path) -> None:
    model = flowergen.load(diffusion_run)
    x, names = model.sample(2, seed=4), model.class_names[:3]
    x_hat = decode(model.module, encode(model.module, x).mean)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    results = {
        "img2img": (model.img2img(x, 0.5, classes=names, num=2, steps=4, guidance_scale=2), 12),
        "inpaint": (model.inpaint(x, mask, classes=names, steps=4), 6),
        "invert": (model.invert(x, steps=4), 2),
        "vary": (model.vary(x, num=3, scale=100.0), 6),
        "interpolate": (model.interpolate(x, num=5), 5),
    }
    for name, (result, num) in results.items():
        assert isinstance(result, Pictures), name
        assert result.shape == (num, 3, 32, 32), name
    assert torch.equal(results["inpaint"][0][:3, :, 16:], x[:1, :, 16:].expand(3, -1, -1, -1))
    torch.testing.assert_close(torch.Tensor(model.img2img(x, 0.0)), x_hat)
    torch.testing.assert_close(torch.cat([results["interpolate"][0][:1], results["interpolate"][0][-1:]]), x_hat)
    for call, words in {
        (lambda: model.img2img(x, 1.5)): "strength=1.5 must be from 0 to 1",
        (lambda: model.img2img(x, 0.5, classes=["nothing"])): "there is no class nothing",
        (lambda: model.img2img(x, 0.5, classes=[])): "at least one class",
        (lambda: model.inpaint(x, mask.float())): r"bool tensor of shape \(32, 32\)",
        (lambda: model.interpolate(x[:1])): "two pictures or more",
    }.items():
        with pytest.raises(UserError, match=words):
            call()


def test_edits_need_a_diffusion_model(autoencoder_run: Path) -> None:
    model = flowergen.load(autoencoder_run)
    with pytest.raises(UserError, match="edited with a diffusion model"):
        model.img2img(model.sample(1))
