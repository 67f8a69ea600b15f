"""The push command: what it writes is a run that others can load, without a path of this machine."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import flowergen
from flowergen import push
from flowergen.app.command import one_line_errors
from flowergen.errors import UserError
from tests.conftest import Command

pytestmark = pytest.mark.slow


def pushed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["push", *arguments])
    try:
        one_line_errors(push.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def assert_no_paths(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".json", ".md"):
            for place in (str(tmp_path), str(Path.home()), "/tmp"):
                assert place not in path.read_text(), (path, place)


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_a_shared_run_is_loaded_as_the_run_itself(
    kind: str, autoencoder_run: Path, diffusion_run: Path, command: Command, tmp_path: Path
) -> None:
    """To the bit, sampling and encoding, with the original deleted. A run can start from it but not be resumed."""
    run, shared = tmp_path / "run", tmp_path / "shared"
    shutil.copytree(autoencoder_run if kind == "autoencoder" else diffusion_run, run)
    assert command("sample", f"run={run}", "num=4").returncode == 0
    before = flowergen.load(run)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = before.sample(3, seed=5), before.encode(x).mean, before.decode(before.encode(x).mean)
    done = command("push", f"run={run}", f"out={shared}")
    assert done.returncode == 0, done.stderr
    assert "complete README.md" in done.stdout
    names = {path.name for path in shared.iterdir()} - {"autoencoder"}
    assert names == {"config.yaml", "model.safetensors", "state.json", "latents.safetensors", "README.md", "samples.png"}
    assert not [path for path in shared.rglob("*") if path.suffix in (".ckpt", ".pt", ".bin", ".pkl")]
    assert_no_paths(shared, tmp_path)
    shutil.rmtree(run)

    model = flowergen.load(shared)
    for ours, theirs in zip((model.sample(3, seed=5), model.encode(x).mean, model.decode(model.encode(x).mean)), expected,
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)
    assert model.class_names == before.class_names
    done = command("sample", f"run={shared}", "num=2", f"out={tmp_path / 'samples'}")
    assert done.returncode == 0, done.stderr
    refused = command("train", f"resume={shared}")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "is a shared run, without the state of training: start from it with init=" in refused.stderr
    few = ("data=procedural", "data.num_images=80", "data.num_classes=4", "data.batch_size=8", "trainer.max_epochs=1",
           "trainer.accelerator=cpu", "callbacks.images.num_samples=4", "callbacks.images.num_reconstructions=4")  # fmt: skip
    done = command("train", f"init={shared}", *few, f"hydra.run.dir={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    assert f"starting from {shared}: " in done.stderr


def test_the_model_card_says_how_to_load_and_leaves_the_licence_open(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path
) -> None:
    """The average of the weights is shared too. With a metric card, its tables are in the model card."""
    run = tmp_path / "my run"
    done = command("train", *tiny_run, "model.ema_decay=0.9", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert command("evaluate", f"run={run}", "num_samples=8", "repeats=1").returncode == 0
    done = command("push", f"run={run}")
    assert done.returncode == 0, done.stderr
    folder = run / "shared"
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    meta = yaml.safe_load(head)
    assert (meta["library_name"], meta["license"], meta["pipeline_tag"]) == (
        "flowergen",
        None,
        "unconditional-image-generation",
    )
    assert "# my run" in body
    assert 'x = model.sample(4, classes=["' in body
    assert "| Fréchet distance" in body or "FID" in body
    assert "### Samples" in body or "### Against" in body
    assert "Not measured." not in body
    assert_no_paths(folder, tmp_path)
    names = set(load_file(folder / "model.safetensors"))
    assert any(name.startswith("ema.net.") for name in names)
    assert any(name.startswith("net.") for name in names)


def test_damaged_shared_runs_are_one_line(autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    assert pushed(monkeypatch, f"run={autoencoder_run}", f"out={shared}") == 0
    state = (shared / "state.json").read_text()
    for name, content in (("state.json", "{"), ("state.json", "[]"), ("state.json", json.dumps({"flowergen": 3})),
                          ("model.safetensors", "broken")):  # fmt: skip
        (shared / "state.json").write_text(state)
        (shared / name).write_text(content)
        with pytest.raises(UserError) as raised:
            flowergen.load(shared)
        assert "\n" not in str(raised.value)


def test_uploading(
    autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With huggingface_hub's client replaced, as there is no network: a private repository, and a failure in a line."""
    calls: list[Any] = []

    class Client:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
            calls.append((repo, private, exist_ok))
            return f"https://huggingface.co/{repo}"

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            if repo_id == "me/offline":
                raise ConnectionError("no\nnetwork")
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Client)
    assert pushed(monkeypatch, f"run={autoencoder_run}", f"out={tmp_path / 'one'}", "repo=me/flowers") == 0
    assert calls[0] == ("me/flowers", True, True)
    assert {"README.md", "model.safetensors"} <= set(calls[1][1])
    assert "repository: https://huggingface.co/me/flowers" in capsys.readouterr().out
    assert pushed(monkeypatch, f"run={autoencoder_run}", f"out={tmp_path / 'two'}", "repo=me/offline") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "the upload failed (ConnectionError: no network): log in with 'hf auth login'" in error
    assert pushed(monkeypatch, f"run={autoencoder_run}", "repo=flowers") == 2
    assert "repo=flowers must be OWNER/NAME" in capsys.readouterr().err


def test_a_space_serves_the_run(
    diffusion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """app.py is executed as a Space does; the server itself is tested in test_explore.py."""
    calls: list[Any] = []

    class Client:
        def create_repo(self, repo: str, **options: Any) -> str:
            calls.append((repo, options))
            return f"https://huggingface.co/spaces/{repo}"

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
            calls.append((repo_id, options))

    monkeypatch.setattr("huggingface_hub.HfApi", Client)
    space = tmp_path / "space"
    assert pushed(monkeypatch, f"run={diffusion_run}", f"out={space}", "repo=me/flowers", "space=true") == 0
    kind = {"repo_type": "space"}
    assert calls == [
        ("me/flowers", {"private": True, "exist_ok": True, "space_sdk": "gradio", **kind}),
        ("me/flowers", kind),
    ]
    head = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    assert (space / "requirements.txt").read_text() == f"flowergen[app]=={flowergen.__version__}\n"
    served: list[Any] = []
    monkeypatch.setattr("flowergen.explorer.server.serve", lambda *given: served.append(given))
    runpy.run_path(str(space / "app.py"), run_name="__main__")
    assert served == [(str(space), "0.0.0.0", 7860)]
    assert flowergen.load(space).sample(1).shape == (1, 3, 32, 32)
    capsys.readouterr()
    assert pushed(monkeypatch, f"run={diffusion_run}", "format=diffusers", "space=true") == 2
    assert "space=true is for format=flowergen" in capsys.readouterr().err
