"""The export command: as a process on the session's diffusion run once, else within this one; its example without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowergen
from flowergen import export
from flowergen.app.command import one_line_errors
from flowergen.evaluation import portable
from flowergen.modules import latent_ddpm
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.run_folder import RunFolder
from tests.conftest import Command
from tests.evaluation.test_latent_edits import Pixels
from tests.evaluation.test_portable import example

pytestmark = pytest.mark.slow

Here = Callable[..., tuple[int, str, str]]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; exec(open('example.py').read())"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Here:
    """Runs the command in this process: exit status, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        status = 0
        try:
            one_line_errors(export.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


def run_without_torch(code: str, folder: Path) -> np.ndarray:
    """The picture that an example writes, in a process that cannot import torch."""
    (folder / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "pictures.png")).astype(float)


def side_by_side(pictures: torch.Tensor) -> np.ndarray:
    return 255 * np.concatenate(pictures.permute(0, 2, 3, 1).cpu().numpy(), axis=1)


def test_a_diffusion_run_samples_without_torch_as_it_does_with_it(
    command: Command, diffusion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's files, the page's example, and our own DDIM from the same noise."""
    run = tmp_path / "run"
    shutil.copytree(diffusion_run, run)
    done = command("export", f"run={run}")
    assert done.returncode == 0, done.stderr
    folder = run / "export" / "onnx"
    assert done.stderr.splitlines() == ["writing and comparing the graphs"]
    for name in ("encoder", "decoder", "denoiser"):
        assert f"{name}.onnx: deviates from the model by " in done.stdout
    assert done.stdout.splitlines()[-1] == f"files: {folder}"
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "decoder.onnx", "denoiser.onnx", "model.json"}
    about = json.loads((folder / "model.json").read_text())
    assert (about["run"], about["num_classes"], len(about["class_names"]), len(about["levels"])) == ("run", 4, 4, 4)

    written = run_without_torch(example("diffusion"), folder)
    module = flowergen.load(diffusion_run).module
    assert isinstance(module, LatentDDPMModule)
    noise = np.random.default_rng(0).standard_normal((4, *module.latent_shape), dtype=np.float32)
    monkeypatch.setattr(latent_ddpm, "normal_per_sample", lambda *args, **kwargs: torch.from_numpy(noise))
    with torch.inference_mode():
        z = module.denoised(range(4), torch.arange(4), 0, replace(module.sampling, sampler="ddim"))
        ours = side_by_side(module.decode(z))
    assert ours.std() > 1
    assert abs(written - ours).max() < 0.6


def test_an_autoencoder_reconstructs_without_torch(here: Here, autoencoder_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    status, _, stderr = here(f"run={autoencoder_run}", f"out={folder}")
    assert status == 0, stderr
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "decoder.onnx", "model.json"}
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    written = run_without_torch(example("autoencoder"), folder)
    model = flowergen.load(autoencoder_run)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    reconstructed = side_by_side(model.decode(model.encode(x).mean))
    assert abs(written[:, 32:64] - reconstructed).max() < 0.6
    assert not (autoencoder_run / "export").exists()


def test_weights_need_no_onnx_and_are_those_that_load_gives(
    here: Here, diffusion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come with what the networks were built from, and get a new folder when there is one already."""
    run = tmp_path / "run"
    shutil.copytree(diffusion_run, run)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for folder in (run / "export" / "safetensors", run / "export" / "safetensors_2"):
        status, stdout, stderr = here(f"run={run}", "format=safetensors")
        assert (status, stdout, stderr) == (0, f"files: {folder}\n", "")
        names = {"encoder.safetensors", "decoder.safetensors", "denoiser.safetensors", "model.json"}
        assert {path.name for path in folder.iterdir()} == names
    about = json.loads((folder / "model.json").read_text())
    assert about["model"]["network"]["channels"] == 16
    assert about["autoencoder"]["blocks"]["channels"] == [4, 8]
    assert about["decoder_activation"] == "clamp"
    monkeypatch.chdir(folder)
    variables: dict[str, torch.nn.Module] = {}
    exec(example("weights"), variables)
    module = flowergen.load(run).module
    x, t, label = torch.randn(2, *module.latent_shape), torch.tensor([5.0, 700.0]), torch.tensor([0, 4])
    torch.testing.assert_close(variables["denoiser"](x, t, label), module.inference_net(x, t, label))


def test_mistakes_are_one_line_and_leave_no_folder(
    here: Here, autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained, out = tmp_path / "untrained", tmp_path / "out"
    untrained.mkdir()
    shutil.copy(autoencoder_run / "config.yaml", untrained)
    run = f"run={autoencoder_run}"
    wrong = {
        (): "run must be given",
        ("run=typo",): "no such run",
        (f"run={untrained}",): "has no checkpoint yet",
        (run, "format=onx"): "did you mean onnx?",
        (run, f"out={autoencoder_run}"): "nothing is overwritten",
    }

    def refused(words: str, *arguments: str) -> None:
        status, stdout, stderr = here(*arguments)
        lines = [line for line in stderr.splitlines() if line != "writing and comparing the graphs"]
        assert (status, stdout, len(lines)) == (2, "", 1), (arguments, stderr)
        assert words in lines[0], arguments
        assert not out.exists()
        assert not (autoencoder_run / "export").exists()

    for arguments, words in wrong.items():
        refused(words, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(export, "find_spec", lambda name: None if name != "onnx" else "there")
        refused("format=onnx needs onnxruntime and onnxscript: pip install 'flowergen[export]'", run)
    with monkeypatch.context() as patch:
        patch.setattr(flowergen, "load", lambda run: LoadedModel(Pixels(), {}, "", [], RunFolder(run)))
        refused("Pixels has no known parts to export", run, f"out={out}")
    with monkeypatch.context() as patch:
        patch.setattr(portable, "deviation", lambda graph, path: (1.1e-4, 1.0))
        refused("encoder.onnx deviates by 1.1e-04 from the model", run, f"out={out}")


def test_help_lists_files_and_keys(here: Here) -> None:
    status, stdout, _ = here("--help")
    assert status == 0
    for words in ("encoder.onnx", "format: onnx", "RUN is a run folder"):
        assert words in stdout
