"""The latents command: as a process on the session's runs once, else within this one, where torch is loaded already."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowergen
from flowergen import latents
from flowergen.app.command import one_line_errors
from flowergen.evaluation import encoding
from tests.conftest import Command

pytestmark = pytest.mark.slow

FILES = ["kl.png", "pca.png", "report.json", "report.md", "tsne.png"]


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: exit status, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["latents", *arguments])
        status = 0
        try:
            one_line_errors(latents.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


def read(folder: Path) -> dict[str, Any]:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return json.loads((folder / "report.json").read_text())


def test_a_diffusion_run_reports_on_its_autoencoder_and_both_repeat(
    command: Command, here: Callable[..., tuple[int, str, str]], autoencoder_run: Path, diffusion_run: Path, tmp_path: Path
) -> None:
    """Figures are those of the same pictures, encoded by hand; a second report gets a folder of its own."""
    run = tmp_path / "run"
    shutil.copytree(diffusion_run, run)
    done = command("latents", f"run={run}")
    assert done.returncode == 0, done.stderr
    assert f"report: {run / 'latents' / 'test'}" in done.stdout
    of_diffusion = read(run / "latents" / "test")
    for line in of_diffusion["verdict"]:
        assert line in done.stdout
        assert line in (run / "latents" / "test" / "report.md").read_text()

    assert here(f"run={autoencoder_run}", f"out={tmp_path / 'out'}")[0] == 0
    found = read(tmp_path / "out")
    assert found["latent_shape"] == of_diffusion["latent_shape"]
    assert found["latent_shape"][0] == 3
    assert found["num_pictures"] == of_diffusion["num_pictures"]
    assert 4 < found["num_pictures"] < 20
    for key in ("kl", "information", "largest_variance"):
        assert found[key] == pytest.approx(of_diffusion[key], rel=1e-4)
    assert list(found["classes"]) == ["whole latent", "mean over positions"]

    model = flowergen.load(autoencoder_run)
    from flowergen.runs.loading import build_datamodule_of_run

    data = build_datamodule_of_run(model, None, None)
    posterior = model.encode(data.pictures[data.rows["test"].tolist()].image.float() / 255)
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, (posterior.logvar / 2).exp()), prior)
    torch.testing.assert_close(torch.tensor(found["per_dimension"]["kl"]), kl.mean(0), rtol=1e-3, atol=1e-5)

    status, stdout, stderr = here(f"run={run}", "split=train", "num=30")
    assert status == 0, stderr
    of_train = read(run / "latents" / "train")
    assert (of_train["split"], of_train["num_pictures"]) == ("train", 30)
    assert "These are training pictures (split=test has others)" in stdout
    assert here(f"run={run}", "split=train", "num=2")[0] == 0
    assert read(run / "latents" / "train_2")["num_pictures"] == 2
    assert here(f"run={run}", "num=1", f"out={tmp_path / 'one'}")[0] == 0
    assert "One picture" in read(tmp_path / "one")["verdict"][0]


def test_without_classes_and_with_nothing_held_out(
    command: Command, here: Callable[..., tuple[int, str, str]], picture_folder: Path, tiny_run: tuple[str, ...], tmp_path: Path
) -> None:
    """A flat latent, a flat folder that has moved since, split=all."""
    flat, moved, run = tmp_path / "flat", tmp_path / "moved", tmp_path / "run"
    flat.mkdir()
    for number, file in enumerate(sorted(picture_folder.rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    options = [option for option in tiny_run if not option.startswith("data.num_")]
    done = command("train", *options, "data=image_folder", f"data.root={flat}", "data.split=all", "trainer.max_epochs=1",
                   f"hydra.run.dir={run}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    flat.rename(moved)
    status, stdout, stderr = here(f"run={run}", f"data.root={moved}", f"paths.cache_dir={tmp_path / 'cache'}")
    assert status == 0, stderr
    assert "These are training pictures (the run holds none out)" in stdout
    assert "classes: the pictures have none" in stdout
    found = read(run / "latents" / "train")
    assert (found["classes"], found["latent_shape"], found["num_pictures"]) == ({}, [4, 1, 1], 60)
    status, _, stderr = here(f"run={run}", "split=test", f"data.root={moved}", f"paths.cache_dir={tmp_path / 'cache'}")
    assert (status, stderr.strip()) == (2, "error: split=test: the run's data has no such pictures (data.split=all)")


def test_mistakes_are_one_line_and_leave_no_folder(
    here: Callable[..., tuple[int, str, str]], autoencoder_run: Path, diffusion_run: Path, tmp_path: Path
) -> None:
    pixels, taken = tmp_path / "pixels", tmp_path / "taken"
    pixels.mkdir()
    taken.mkdir()
    (taken / "report.md").write_text("mine")
    lines = (diffusion_run / "config.yaml").read_text().splitlines()
    lines = ["autoencoder: none" if line.startswith("autoencoder:") else line for line in lines]
    (pixels / "config.yaml").write_text("\n".join(lines))
    run = f"run={autoencoder_run}"
    wrong = {
        (): "run must be given",
        ("run=typo",): "no such run",
        (f"run={pixels}",): "works on pixels and has no latent space",
        (run, "split=tests"): "did you mean test?",
        (run, "num=0"): "num=0",
        (run, "numm=5"): "did you mean num?",
        (run, f"data.root={tmp_path}"): "has no folder: leave data.root out",
        (run, "--split"): "is not an option",
    }
    for arguments, words in wrong.items():
        status, stdout, stderr = here(*arguments)
        assert (status, stdout, len(stderr.splitlines())) == (2, "", 1), (arguments, stderr)
        assert words in stderr, arguments
    status, _, stderr = here(run, f"out={taken}")
    assert status == 2
    assert "nothing is overwritten" in stderr.splitlines()[-1]
    assert [path.name for path in taken.iterdir()] == ["report.md"]
    assert not (autoencoder_run / "latents").exists()


def test_a_run_that_has_diverged_is_one_line(
    here: Callable[..., tuple[int, str, str]], autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posteriors = encoding.posteriors

    def diverged(*args: Any, **kwargs: Any) -> Any:
        for mean, logvar in posteriors(*args, **kwargs):
            broken = logvar.clone()
            broken[0, 0, 0] = torch.nan
            yield mean, broken

    monkeypatch.setattr(encoding, "posteriors", diverged)
    status, _, stderr = here(f"run={autoencoder_run}", f"out={tmp_path / 'out'}")
    assert status == 2
    assert "the latents of 1 of" in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_large_latents_are_taken_of_fewer_pictures(
    here: Callable[..., tuple[int, str, str]], autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command says so."""
    encoded: list[int] = []
    encode = latents._encode

    def counted(model: Any, data: Any, rows: Any, of: str) -> Any:
        encoded.append(len(rows))
        return encode(model, data, rows, of)

    shape = flowergen.load(autoencoder_run).module.latent_shape
    monkeypatch.setattr(latents, "MAX_VALUES", 5 * int(torch.tensor(shape).prod()))
    monkeypatch.setattr(latents, "_encode", counted)
    status, _, stderr = here(f"run={autoencoder_run}", f"out={tmp_path / 'out'}")
    assert (status, encoded) == (0, [5, 5])
    assert "num=5" in stderr


def test_help_lists_files_and_keys(here: Callable[..., tuple[int, str, str]]) -> None:
    status, stdout, _ = here("--help")
    assert status == 0
    for words in ("tsne.png", "split: null", "RUN is a run folder"):
        assert words in stdout
