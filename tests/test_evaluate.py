"""The evaluate command, and the small evaluation during training: in this process where another proves nothing more."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flowergen
from flowergen import evaluate
from flowergen.errors import UserError
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.runs import sampling
from tests.warm_process import warm_run

pytestmark = pytest.mark.slow

SMALL = ("extractor=efficientnet", "num_samples=16", "repeats=2")
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9"}

Evaluate = Callable[..., None]


@pytest.fixture(scope="module")
def evaluated(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluate]:
    """``evaluated("run=RUN")`` is the command without a process of its own: no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
        patch.setenv("https_proxy", NO_NETWORK["https_proxy"])
        patch.chdir(tmp_path_factory.mktemp("evaluated"))
        no_weights = tmp_path_factory.mktemp("no_weights")

        def evaluated(*arguments: str) -> None:
            patch.setattr(sys, "argv", ["evaluate", *arguments, f"paths.weights_dir={no_weights}"])
            evaluate.main()

        yield evaluated


def process(name: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``python -m tests.NAME``, which kills itself where it is told to."""
    return warm_run(f"tests.{name}", arguments, Path(__file__).parents[1], environment | NO_NETWORK, timeout=300)


def card_in(folder: Path) -> dict[str, Any]:
    """All of a card but when and where it was made."""
    card = json.loads((folder / "card.json").read_text())
    del card["made"]
    return card


def only_card(run: Path) -> Path:
    (path,) = run.glob("evaluation/*/card.json")
    return path.parent


@pytest.fixture(scope="module")
def runs(
    autoencoder_run: Path, diffusion_run: Path, evaluated: Evaluate, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An autoencoder's and a diffusion run, copied and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    copies = folder / "autoencoder", folder / "diffusion"
    for run, copied in zip((autoencoder_run, diffusion_run), copies, strict=True):
        shutil.copytree(run, copied)
        evaluated(f"run={copied}", *SMALL)
    return copies


DISTANCES = {"fid", "kid", "precision", "recall", "inception_score"}
COPIES = {f"copies_{space}_{bound}" for space in ("pixels", "features") for bound in ("third", "calibrated")}
RECONSTRUCTION = {"rfid", "rkid", "psnr", "ssim", "sharpness", "elbo", "rate", "distortion", "active_units"}


def test_a_card_holds_every_figure_beside_its_floor(runs: tuple[Path, Path]) -> None:
    """Of either family; what the disk needed on the way is gone, the scalars are in TensorBoard."""
    for run in runs:
        folder = only_card(run)
        card, results = card_in(folder), card_in(folder)["results"]
        diffusion = run.name == "diffusion"
        assert set(results) >= DISTANCES | COPIES | RECONSTRUCTION
        assert ("denoising_loss" in results) == diffusion
        for metric in DISTANCES:
            assert len(results[metric]["samples"]["values"]) == len(results[metric]["train"]["values"]) == 2
        assert {"autoencoder", "samples", "train"} == set(results["fid"])
        assert {"samples", "held_out"} == set(results["copies_features_calibrated"])
        assert results["elbo"]["reference"]["mean"] == pytest.approx(
            -results["rate"]["reference"]["mean"] - results["distortion"]["reference"]["mean"]
        )
        assert ("samples" in results["class_accuracy"]) == diffusion
        assert card["counts"]["samples"] == 16
        assert card["counts"]["reference"] == card["protocol"]["num_reference"] == 8
        assert [line[:5] for line in card["missing"]] == ["LPIPS"]
        text = (folder / "card.md").read_text()
        assert "Fréchet distance (efficientnet)" in text
        assert "FID" not in text
        assert {path.name for path in folder.iterdir()} - {".lock"} == {
            "card.json", "card.md", "copies_features.png", "copies_pixels.png", "evaluation.json"}  # fmt: skip
        events = EventAccumulator(str(run / "tensorboard" / "evaluation" / folder.name))
        events.Reload()
        (scalar,) = events.Scalars("evaluation/fid_efficientnet_samples")
        assert scalar.value == pytest.approx(results["fid"]["samples"]["mean"])


def test_the_same_command_finds_its_card(
    runs: tuple[Path, Path], evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (only_card(runs[0]) / "card.json").read_bytes()
    evaluated(f"run={runs[0]}", *SMALL)
    assert "already measured" in capsys.readouterr().err
    assert (only_card(runs[0]) / "card.json").read_bytes() == before


def test_cards_of_one_protocol_stand_in_one_table(
    runs: tuple[Path, Path], evaluated: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Those of another are refused, and what differs is named."""
    evaluated(f"compare=[{runs[0]},'{runs[1]}']")
    out = capsys.readouterr().out
    (head,) = [line for line in out.splitlines() if "runs0/autoencoder" in line]
    assert head.index("autoencoder") < head.index("diffusion")
    for run in runs:
        fid = card_in(only_card(run))["results"]["fid"]["samples"]["mean"]
        (line,) = [line for line in out.splitlines() if line.startswith("| Fréchet distance (efficientnet)  ")]
        assert f"{fid:.2f}" in line
    other = tmp_path / "other seed"
    evaluated(f"run={runs[1]}", *SMALL[:2], "repeats=1", "seed=1", f"out={other}")
    with pytest.raises(UserError, match=r"compared: repeats: 2 and 1; seed: 0 and 1\. "):
        evaluated(f"compare=[{runs[0]},{other}]")


def test_a_killed_evaluation_goes_on_to_the_same_card(
    runs: tuple[Path, Path], evaluated: Evaluate, process_environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL before the fit of the linear probe, then among the samples; nothing that was cached before. Of another batch size
    the features differ by rounding.
    """
    out, whole, cache = tmp_path / "out", tmp_path / "whole", tmp_path / "cache"
    usual = (f"run={runs[1]}", *SMALL, "batch_size=8")
    arguments = (*usual, f"out={out}", f"paths.cache_dir={cache}")
    for moment in (("probe", "1"), ("rows", "2")):  # features of real pictures are cached by then
        killed = process("killed_evaluate", *moment, *arguments, environment=process_environment)
        assert killed.returncode == -9, killed.stderr
        assert not (out / "card.json").exists()
    assert (out / "work" / "samples" / "pixels.rows").stat().st_size == 8 * 3 * 32 * 32
    evaluated(*arguments)
    assert not (out / "work").exists()
    evaluated(*usual, f"out={whole}")
    assert card_in(out) == card_in(whole)


def test_the_card_says_whose_features_have_trained_the_model(
    runs: tuple[Path, Path], evaluated: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a diffusion model those of its autoencoder."""
    monkeypatch.setattr(VAEGANModule, "features_trained_with", "EfficientNet-Lite0")
    evaluated(f"run={runs[1]}", *SMALL[:2], "repeats=1", f"out={tmp_path / 'out'}")
    assert "trained with EfficientNet-Lite0's features, measured in EfficientNet-Lite1's" in card_in(tmp_path / "out")["notes"]


class MeanColours(torch.nn.Module):
    """An extractor of one's own."""

    image_size: int

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_a_model_trained_in_bf16_is_drawn_in_bf16(
    runs: tuple[Path, Path], evaluated: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compiled if there are enough samples; the card is near that in float32."""
    run = tmp_path / "run"
    shutil.copytree(runs[1], run, ignore=shutil.ignore_patterns("evaluation"))
    config = (run / "config.yaml").read_text()
    assert "precision: auto" in config
    assert "compile: false" in config
    (run / "config.yaml").write_text(
        config.replace("precision: auto", "precision: bf16-mixed").replace("compile: false", "compile: true")
    )
    monkeypatch.setattr(sampling, "WORTH_COMPILING", 32)
    evaluated(f"run={run}", *SMALL)
    card, exact = card_in(only_card(run)), card_in(only_card(runs[1]))
    assert card["subject"]["sampled by"] == f"{exact['subject']['sampled by']}, in bf16"
    (ours,), (theirs,) = (each["results"]["fid"]["samples"]["values"][:1] for each in (card, exact))
    assert ours != theirs
    assert abs(ours - theirs) < 0.1 * theirs


def save_pictures(folder: Path, seed: int, num: int = 24) -> Path:
    """Blots of random colours in two class folders."""
    rng = np.random.default_rng(seed)
    for number in range(num):
        path = folder / ("roses", "tulips")[number % 2] / f"IMG ({number}).png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((20, 20)).save(path)
    return folder


def test_folders_of_pictures_whatever_made_them(evaluated: Evaluate, tmp_path: Path) -> None:
    """Copies of training pictures are all found, new ones are none; features come from a TorchScript file."""
    file = tmp_path / "mean colours.pt"
    torch.jit.script(MeanColours()).save(str(file))
    train, real, new = (save_pictures(tmp_path / name, seed) for seed, name in enumerate(("learnt from", "real", "new")))
    cards = {}
    for name, generated in (("copied", train), ("invented", new)):
        folders = (f"generated={generated}", f"reference={real}", f"train={train}")
        evaluated(*folders, f"extractor={file}", f"out={tmp_path / name}")
        cards[name] = card_in(tmp_path / name)
    for space in ("pixels", "features"):
        metric = f"copies_{space}_third"
        assert cards["copied"]["results"][metric]["samples"]["mean"] == 1
        assert cards["invented"]["results"][metric]["samples"]["mean"] < 0.2
    assert cards["copied"]["protocol"] == cards["invented"]["protocol"]
    assert cards["copied"]["results"]["class_accuracy"]["samples"]
    assert "Fréchet distance (mean colours.pt)" in (tmp_path / "copied" / "card.md").read_text()


def test_without_inception_all_the_rest_is_measured(
    evaluated: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a line before, and the card, say where the weights belong; extractor=auto takes EfficientNet-Lite1 instead."""
    caplog.set_level("INFO")
    real, new = save_pictures(tmp_path / "real", 0), save_pictures(tmp_path / "new", 1)
    folders = (f"generated={new}", f"reference={real}", f"train={real}")
    evaluated(*folders, "extractor=inception", f"out={tmp_path / 'out'}")
    card = card_in(tmp_path / "out")
    assert card["protocol"]["extractor_weights"] == "missing"
    assert "no_weights" in card["missing"][0]
    begins = next(line for line in caplog.messages if line.startswith("looking for near-duplicates"))
    assert caplog.messages.index(f"not measured: {card['missing'][0]}") < caplog.messages.index(begins)
    assert not DISTANCES & set(card["results"])
    assert {"copies_pixels_third", "class_accuracy"} <= set(card["results"])
    assert "copy_bound_pixels" not in card["results"], "nothing was held out to calibrate with"
    evaluated(*folders, f"out={tmp_path / 'auto'}")
    card = card_in(tmp_path / "auto")
    assert (card["protocol"]["extractor"], card["missing"]) == ("efficientnet", [])
    assert set(card["results"]) >= DISTANCES
    assert any(note.startswith("extractor=auto: efficientnet, as ") for note in card["notes"])
    text = (tmp_path / "auto" / "card.md").read_text()
    assert "| Fréchet distance (efficientnet) " in text
    assert not re.search("FID|KID", text)


WRONG = {
    (): "give one of run=RUN",
    ("run=RUN", "generated=RUN"): "not run and generated together",
    ("generated=RUN",): "give reference=DIR too",
    ("run=RUN", "extractor=classifier"): "extractor=classifier no longer exists: use extractor=efficientnet",
    ("compare=[RUN]",): "two cards or more",
    ("compare=[RUN,nowhere]",): "nowhere does not exist",
    ("run=RUN", "extractor=inceptoin"): "must be auto, inception, efficientnet",
    ("run=RUN", "num_samples=3"): "from 4",
    ("run=RUN", "repeats=0"): "from 1",
    ("run=RUN", "colour=red"): "there is no key colour",
    ("run=RUN", "out=RUN"): "give a new folder",
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.items())
def test_what_is_wrong_is_said_before_anything_is_measured(
    evaluated: Evaluate, diffusion_run: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("flowergen.runs.evaluation.load_run", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError) as error:
        evaluated(*(argument.replace("RUN", str(diffusion_run)) for argument in arguments))
    assert words in str(error.value)
    assert not (diffusion_run / "evaluation").exists()


def test_sets_of_fewer_than_four_pictures_are_refused(evaluated: Evaluate, tmp_path: Path) -> None:
    """Precision and recall go to the third neighbour; not only after all samples have been drawn."""
    few, many = save_pictures(tmp_path / "few", 0, num=3), save_pictures(tmp_path / "many", 1)
    for folders in ((few, many), (many, few)):
        with pytest.raises(UserError, match=r"^3 pictures of few are too few to evaluate with: give at least 4"):
            evaluated(f"generated={folders[0]}", f"reference={folders[1]}")


def test_a_broken_picture_of_a_folder_is_named_without_options_of_training(evaluated: Evaluate, tmp_path: Path) -> None:
    real, new = save_pictures(tmp_path / "real", 0), save_pictures(tmp_path / "new", 1)
    (real / "roses" / "torn.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"torn\.png \(not a picture\); repair or remove them$"):
        evaluated(f"generated={new}", f"reference={real}", "image_size=20")


def test_an_evaluation_during_training_changes_nothing_and_outlives_a_kill(
    autoencoder_run: Path, diffusion_run: Path, process_environment: dict[str, str], tiny_latent_ddpm: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    """A run with it has the weights of one without it; killed in its second epoch and resumed, it ends bit-equal."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*tiny_latent_ddpm, f"autoencoder={autoencoder_run}", "callbacks.evaluation.every_epochs=1",
                 "callbacks.evaluation.num_samples=8"]  # fmt: skip
    resume = [f"resume={killed}"]
    for moment, words, status in (
        ("evaluation:0", [*arguments, f"hydra.run.dir={whole}"], 0),
        ("diffusion training step:13", [*arguments, f"hydra.run.dir={killed}"], -9),
        ("evaluation:0", resume, 0),
    ):
        environment = process_environment | {"KILL": f"SIGKILL:{moment}"}
        done = process("killed_train", *words, environment=environment)
        assert done.returncode == status, done.stderr
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    last = {run: torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed, diffusion_run)}
    for other in (killed, diffusion_run):
        for name, value in last[whole]["state_dict"].items():
            assert torch.equal(value, last[other]["state_dict"][name]), f"{other.name}: {name}"
    looks = [last[run]["callbacks"]["PeriodicEvaluation"] for run in (whole, killed)]
    assert looks[0] == looks[1]
    assert [entry["epoch"] for entry in looks[0]["history"]] == [1, 2]

    with (whole / "metrics.csv").open() as file:
        logged = [float(value) for row in csv.DictReader(file) if (value := row["eval/fid_efficientnet"])]
    assert logged == [entry["values"]["eval/fid_efficientnet"] for entry in looks[0]["history"]]
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert [scalar.value for scalar in events.Scalars("eval/fid_efficientnet")] == pytest.approx(logged)
    assert {"best_fid.ckpt", "before_memorising.ckpt"} <= set(os.listdir(whole / "checkpoints"))
    best = flowergen.load(whole / "checkpoints" / "best_fid.ckpt")
    assert best.module.optimizer_steps == 8 * (1 + int(np.argmin(logged)))  # type: ignore[attr-defined]
    assert {"copies_epoch_0001.png", "copies_epoch_0002.png"} <= set(os.listdir(whole / "images"))
    assert (whole / "evaluation.png").is_file()
