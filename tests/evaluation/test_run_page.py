import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml

from flowergen.evaluation.card import summarised
from flowergen.evaluation.run_page import write_run_page
from flowergen.viz.grids import write_png

RESULTS = {
    "fid": {"samples": [694.0, 698.0], "train": [228.0]},
    "class_accuracy": {"samples": [0.267], "held_out": [0.817]},
    "psnr": {"reference": [23.5]},
    "denoising_loss": {"train": [0.5], "held_out": [0.75]},
}


def grid(path: Path, width: int = 20) -> Path:
    write_png(path, np.zeros((10, width, 3), dtype=np.uint8))
    return path


def run_folder(path: Path, **model: Any) -> Path:
    """As a diffusion run leaves it."""
    path.mkdir(parents=True)
    config = {
        "model": {"_target_": "flowergen.modules.latent_ddpm.LatentDDPMModule", "sampling": {}, **model},
        "data": {"name": "a <b> & c", "image_size": 64},
        "trainer": {"budget": "10min"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.csv").write_text("epoch,step,train/loss\n1,10,0.5\n2,1234,0.4\n")
    for kind in ("generated", "reconstruction"):
        for epoch in (2, 10):
            grid(path / "images" / f"{kind}_epoch_{epoch}.png")
    grid(path / "loss_plot.png")
    return path


def write_card(folder: Path, results: dict[str, Any]) -> None:
    grid(folder / "copies_pixels.png")
    (folder / "card.md").write_text("whole")
    protocol = {"extractor": "efficientnet", "num_reference": 819, "reference": "test pictures"}
    card = {"subject": {}, "protocol": protocol, "results": summarised(results), "made": {"date": "2030"}}
    (folder / "card.json").write_text(json.dumps(card))


def sources_of(page: str) -> list[str]:
    return [unquote(source) for source in re.findall(r'(?:src|href)="([^"]*)"', page)]


def test_the_page_shows_what_the_folder_holds(tmp_path: Path) -> None:
    """Every link leads to a file in the folder; the newest pictures come first; text is escaped."""
    run = run_folder(tmp_path / "no'name" / "2030 <i>")
    for number in range(2):
        grid(run / "samples" / "seed0" / "denoising" / f"seed0_class00{number}.gif")
    grid(run / "samples" / "seed0" / "grid.png", width=300)
    write_card(run / "evaluation" / "aa", RESULTS)
    assert write_run_page(run) == run / "index.html"
    page = (run / "index.html").read_text()
    sources = sources_of(page)
    assert all((run / source).is_file() for source in sources)
    assert [source for source in sources if "generated" in source] == [
        "images/generated_epoch_10.png",
        "images/generated_epoch_2.png",
    ]
    assert "images/reconstruction_epoch_10.png" in sources
    assert "images/reconstruction_epoch_2.png" not in sources
    assert {"samples/seed0/grid.png", "loss_plot.png", "evaluation/aa/copies_pixels.png", "evaluation/aa/card.md"} <= set(
        sources
    )
    assert len([source for source in sources if source.endswith(".gif")]) == 2
    assert 'width="40"' in page, "pictures of 64 px are shown at 128"
    assert 'width="300"' in page, "grid.png contains them enlarged"
    assert "1,234 optimiser steps, epoch 2" in page
    assert "a &lt;b&gt; &amp; c at 64 px" in page
    assert "<i>" not in page
    assert 'http-equiv="refresh"' not in page
    assert not list(run.glob("*.partial"))


def test_samples_of_several_classes_stand_in_a_row_each(tmp_path: Path) -> None:
    """Eight at most, in the order in which they were drawn; of one class or of none, the grid."""
    run = run_folder(tmp_path / "run")
    samples = run / "samples" / "seed0"
    grid(samples / "grid.png")
    for number in range(20_000, 20_010):
        grid(samples / "pictures" / f"seed0_class053_sun_flower_{number}.png")
    assert "samples/seed0/grid.png" in sources_of(write_run_page(run).read_text())
    grid(samples / "pictures" / "seed0_class007_rose_100000.png")
    denoising = [f"samples/seed0/denoising/seed0_{name}.gif" for name in ("class053_sun_flower_20000", "class007_rose_100000")]
    for name in denoising:
        grid(run / name)
    page = write_run_page(run).read_text()
    assert re.findall(r"<span>(.*?)</span>", page) == ["53 sun flower", "7 rose"]
    shown = [source for source in sources_of(page) if "pictures/" in source]
    assert shown == [
        *(f"samples/seed0/pictures/seed0_class053_sun_flower_{number}.png" for number in range(20_000, 20_008)),
        "samples/seed0/pictures/seed0_class007_rose_100000.png",
    ]
    assert page.count('width="128" height="128"') == 9
    assert [source for source in sources_of(page) if source.endswith(".gif")] == denoising


@pytest.mark.parametrize(
    ("data", "words", "size", "factor"),
    [
        ({"image_size": [64, 48], "channels": 1, "fit": "pad"}, "at 64 x 48 px in grey", (144, 192), 3),
        ({"image_size": [48, 64]}, "at 48 x 64 px", (128, 96), 2),
        ({"image_size": 32, "channels": 1}, "at 32 px in grey", (128, 128), 4),
        ({"image_size": [48, -64]}, "at 64 px", (128, 128), 2),
    ],
    ids=str,
)
def test_pictures_are_enlarged_by_a_whole_number_to_128_px_of_width(
    data: dict[str, Any], words: str, size: tuple[int, int], factor: int, tmp_path: Path
) -> None:
    """With their proportions; those of an unexpected config as if they were of 64 px."""
    run = run_folder(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"name": "dogs", **data}}))
    grid(run / "samples" / "seed0" / "grid.png")
    for label in range(2):
        grid(run / "samples" / "seed0" / "pictures" / f"seed0_class00{label}_rose_0000{label}.png")
    page = write_run_page(run).read_text()
    assert f"dogs {words}, 1,234 optimiser steps" in page
    assert page.count(f'width="{size[0]}" height="{size[1]}"') == 2
    assert f'width="{20 * factor}"' in page, "grids of 20 px"


def test_the_card_is_told_in_words(tmp_path: Path) -> None:
    """The model's value, then what to hold it against; what is of photographs alone is no value of the model."""
    run = run_folder(tmp_path / "run")
    write_card(run / "evaluation" / "aa", RESULTS)
    page = write_run_page(run).read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", page)]
    found = {row[0]: row[1:3] for row in rows if row}
    assert found["Fréchet distance (efficientnet)"] == ["696.00&nbsp;±&nbsp;2.83", "228.00 (floor: training pictures)"]
    assert found["of their class"] == ["26.7%", "81.7% (held-out pictures)"]
    assert found["PSNR, dB"] == ["23.50", ""]
    assert found["denoising loss"] == ["0.7500", "0.5000 (as many training pictures)"]
    write_card(run / "evaluation" / "aa", {"class_accuracy": {"held_out": [0.8]}})
    assert "of their class" not in write_run_page(run).read_text()


def test_what_is_newer_is_shown(tmp_path: Path) -> None:
    """Pictures of a training that went on after flowergen.sample was there, and the other way round."""
    run = run_folder(tmp_path / "run")
    sampled, generated = grid(run / "samples" / "seed0" / "grid.png"), run / "images" / "generated_epoch_10.png"
    for newer, older in ((sampled, generated), (generated, sampled)):
        os.utime(newer, (2e9, 2e9))
        os.utime(older, (1e9, 1e9))
        first = sources_of(write_run_page(run).read_text())[0]
        assert first == str(newer.relative_to(run))


def test_a_picture_that_pillow_refuses_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path / "run")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 50)
    assert "generated" not in write_run_page(run).read_text()


def test_a_damaged_card_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    write_card(run / "evaluation" / "aa", RESULTS)
    (run / "evaluation" / "bb").mkdir()
    (run / "evaluation" / "bb" / "card.json").write_text("{")
    assert "Metric card" in write_run_page(run).read_text()


def test_a_page_of_a_run_in_training_reloads_itself(tmp_path: Path) -> None:
    page = write_run_page(run_folder(tmp_path / "run"), training=True).read_text()
    assert '<meta http-equiv="refresh" content="30">' in page
    assert "reloads itself" in page


def test_commands_fit_the_model(tmp_path: Path) -> None:
    diffusion = write_run_page(run_folder(tmp_path / "a run")).read_text()
    assert "flowergen.sample &#x27;run=" in diffusion
    assert "autoencoder=" not in diffusion
    assert "trainer.budget=" in diffusion
    autoencoder = run_folder(tmp_path / "b")
    (autoencoder / "config.yaml").write_text(
        yaml.safe_dump({"model": {}, "data": {"name": "dogs"}, "trainer": {"max_epochs": 3}})
    )
    page = write_run_page(autoencoder).read_text()
    assert f"model=latent_ddpm data=dogs autoencoder={autoencoder}" in page
    assert "trainer.max_epochs=" in page

    assert "model=decoder" not in diffusion, "on pixels, or on the latents of a VAE"
    on_latents = run_folder(tmp_path / "c")
    (on_latents / "autoencoder").mkdir()
    (on_latents / "autoencoder" / "config.yaml").write_text(yaml.safe_dump({"model": {"discriminator": {}}}))
    page = write_run_page(on_latents).read_text()
    assert "model=decoder" in page
    assert f"diffusion={on_latents}" in page
    (on_latents / "config.yaml").write_text(yaml.safe_dump({"model": {}, "diffusion": "d", "data": {"name": "dogs"}}))
    page = write_run_page(on_latents).read_text()
    assert "flowergen.sample" in page
    assert not any(words in page for words in ("flowergen.vary", "model=latent_ddpm", "model=decoder"))


@pytest.mark.parametrize("content", ["", "[", "[1]", "model: 3\ndata: []\ntrainer: x", "data: {image_size: -1}", "\x00"])
def test_what_is_damaged_is_left_out(content: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "config.yaml").write_text(content)
    (run / "metrics.csv").write_text(content)
    (run / "images" / "generated_epoch_10.png").write_text("no picture")
    (run / "evaluation" / "aa").mkdir(parents=True)
    for card in (content, "{}", '{"protocol": {}, "results": {"fid": 3}, "made": {"date": "x"}}'):
        (run / "evaluation" / "aa" / "card.json").write_text(card)
        page = write_run_page(run).read_text()
        assert "images/reconstruction_epoch_10.png" in page
        assert "generated_epoch_10" not in page
        assert "Metric card" not in page


def test_an_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    assert "<h1>" in write_run_page(tmp_path).read_text()
