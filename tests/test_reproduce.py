"""What scripts/reproduce.py starts, goes on with and leaves alone; the commands themselves have their own tests."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import reproduce
import torch
import yaml

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.errors import UserError


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run, in order."""
    seen: list[list[str]] = []
    monkeypatch.setattr(reproduce, "run", lambda *arguments: seen.append(list(arguments)))
    monkeypatch.setattr(reproduce, "cpu_options", list)
    return seen


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    reproduce.main()


def left(folder: Path, exit_: str) -> None:
    """A run folder as a session leaves it that ended so."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({}))
    recipe, budget = {"autoencoder": ("vae_gan", 720), "diffusion": ("ldm", 1800), "decoder": ("decoder", 540)}[folder.name]
    typed = [f"experiment=flowers_laptop_{recipe}", "data=flowers102", "seed=0", f"trainer.budget={budget}s"]
    typed += ["paths.cache_dir='/a'", *(["model.num_latents=2048"] if recipe == "decoder" else [])]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(typed))
    (folder / "provenance.json").write_text(json.dumps({"exit": exit_}))


def test_all_stages_samples_and_the_card_within_the_minutes(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, "minutes=20", "data.root=/pictures", "seed=3", f"out={tmp_path}")
    stage1, stage2, stage3, sample, evaluate = commands
    config = resolve(checked(stage1[1:-1])[0])
    assert (config["seed"], config["data"]["root"], config["trainer"]["budget"]) == (3, "/pictures", "240s")
    assert f"autoencoder={tmp_path}/autoencoder" in stage2
    assert {"trainer.budget=600s", "seed=3", "data.root=/pictures", f"hydra.run.dir={tmp_path}/diffusion"} <= set(stage2)
    assert {
        f"diffusion={tmp_path}/diffusion",
        "model.num_latents=700",
        "trainer.budget=180s",
        "seed=3",
        "data.root=/pictures",
    } <= set(stage3)
    assert sample[:2] == ["sample", f"run={tmp_path}/decoder"]
    assert evaluate == ["evaluate", f"run={tmp_path}/decoder", "data.root=/pictures"]
    out = capsys.readouterr().out
    assert out.endswith(f"page: {tmp_path}/decoder/index.html\n")
    left_then = [line.rpartition(", ")[2] for line in out.splitlines() if line.endswith("left")]
    assert left_then == [f"about {minutes} minutes left" for minutes in (20, 16, 6, 3)]


def test_diffusion_uses_what_the_cpu_is_fast_at(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it begins, also after a refusal; a run that has begun keeps its own settings."""
    found = {"trainer.precision=bf16-mixed", "trainer.compile=true"}
    monkeypatch.setattr(reproduce, "cpu_options", lambda: sorted(found))
    start(monkeypatch, f"out={tmp_path}")
    assert [bool(found & set(command)) for command in commands[:3]] == [False, True, False]
    checked([argument for argument in commands[1] if argument.startswith("trainer.")])
    tried: list[bool] = []
    monkeypatch.setattr(reproduce, "cpu_options", lambda: tried.append(True) or sorted(found))
    for exit_, given in (("UserError: no pictures", found), ("running, or killed", set())):
        commands.clear()
        tried.clear()
        left(tmp_path / "diffusion", exit_)
        start(monkeypatch, f"out={tmp_path}")
        assert found & set(commands[1]) == given
        assert bool(tried) == bool(given), "a trial takes many seconds"


def test_what_the_cpu_is_fast_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own, so that nothing of torch stays in memory. Without a compiler, the rest is still found."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    capabilities = torch.cpu.get_capabilities()
    bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    assert reproduce.cpu_options() == (["trainer.precision=bf16-mixed"] if bf16 else [])
    monkeypatch.delenv("CXX")
    compiles = shutil.which("g++") and (Path(sysconfig.get_path("include")) / "Python.h").exists()
    assert ("trainer.compile=true" in reproduce.cpu_options()) == bool(compiles)


def test_a_stopped_one_goes_on_and_a_finished_one_is_left_alone(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "autoencoder", "running, or killed")  # after its last file
    for name in ("weights.safetensors", "latents.safetensors"):
        (tmp_path / "autoencoder" / name).touch()
    left(tmp_path / "diffusion", "finished")
    left(tmp_path / "decoder", "running, or killed")
    start(monkeypatch, f"out={tmp_path}")
    assert commands[0] == ["train", f"resume={tmp_path}/decoder"]
    assert [name for name, *_ in commands] == ["train", "sample", "evaluate"]

    commands.clear()
    left(tmp_path / "decoder", "finished")
    (tmp_path / "decoder" / "samples" / "seed0").mkdir(parents=True)
    (tmp_path / "decoder" / "samples" / "seed0" / "grid.png").touch()
    start(monkeypatch, f"out={tmp_path}")
    assert [name for name, *_ in commands] == ["sample", "evaluate"], "killed between the grid and the denoising"
    commands.clear()
    (tmp_path / "decoder" / "samples" / "seed0" / "denoising_path.png").touch()
    start(monkeypatch, f"out={tmp_path}")
    assert [name for name, *_ in commands] == ["evaluate"]


def test_other_pictures(commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "data=dogs", f"data.root={tmp_path}", f"out={tmp_path}")
    *stages, sample, evaluate = commands
    for stage in stages:
        assert {"data=dogs", f"data.root={tmp_path}"} <= set(stage)
    config = resolve(checked(stages[0][1:-1])[0])
    assert (config["data"]["name"], config["data"]["image_size"], config["model"]["image_size"]) == ("dogs", 64, 64)
    assert sample == ["sample", f"run={tmp_path}/decoder"], "whose classes are not known here"
    assert evaluate == ["evaluate", f"run={tmp_path}/decoder", f"data.root={tmp_path}"]


@pytest.mark.parametrize("argument", ["minutes=61", "seed=1", "data=dogs"])
def test_another_run_is_not_taken_for_this_one(
    argument: str, commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "autoencoder", "finished")
    with pytest.raises(UserError, match="out="):
        start(monkeypatch, argument, f"out={tmp_path}")
    assert not commands


@pytest.mark.parametrize("argument", ["minutes=x", "minutes=0", "minutes=nan", "model=vae", "out=", "minutes"])
def test_other_arguments_are_refused(argument: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        start(monkeypatch, argument)
    assert not commands


def test_a_command_that_fails_ends_it_with_the_same_status(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.run("sample", f"run={tmp_path}/missing")
    assert ended.value.code == 2


@pytest.mark.parametrize("script", ["gpu_campaign.sh", "gpu_pack.sh"])
def test_a_shell_script_is_valid_and_says_how_it_is_called(script: str) -> None:
    path = Path(reproduce.__file__).parent / script
    checked_only = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (checked_only.returncode, checked_only.stderr) == (0, "")
    called = subprocess.run(["bash", path], capture_output=True, text=True, check=False)
    assert called.returncode == 2
    assert f"bash scripts/{script} " in called.stdout
