"""The vary command on one tiny run: as a process once, else within this one, where torch is loaded already."""

import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import flowergen
from flowergen import vary
from flowergen.app.command import one_line_errors
from tests.conftest import Command

pytestmark = pytest.mark.slow


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """``here("vary", ...)`` runs the command in this process."""

    def run(name: str, *arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status = 0
        try:
            one_line_errors(vary.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return run  # type: ignore[return-value]


@pytest.fixture
def run(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    done = command("train", *tiny_run, "trainer.max_epochs=1", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Any size and mode: grey, transparent, 16 bit, palette, tall; with odd names; and one that does not decode."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "my pictures"
    folder.mkdir()
    colours = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    colours.convert("L").save(folder / "grey.png")
    colours.convert("RGBA").save(folder / "transparent (1).png")
    colours.convert("P").save(folder / "a=b, c.gif")
    colours.resize((9, 200)).save(folder / "Blüte.webp")
    Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_every_mode_makes_its_pictures(command: Command, here: Command, run: Path, pictures: Path, tmp_path: Path) -> None:
    """Self-contained: the run has moved, and its cache is not needed for pictures that are given."""
    moved = tmp_path / "moved run"
    shutil.move(run, moved)
    shutil.copytree(pictures, tmp_path / "two")
    for name in ("grey.png", "deep.png", "a=b, c.gif", "broken.jpg"):
        (tmp_path / "two" / name).unlink()
    image = f"image={pictures / 'transparent (1).png'}"
    expected = {
        (image, "num=3", "scale=1"): "variations_transparent (1)/variations.png",
        (f"image={pictures}", "num=2", "scale=1"): "variations_my pictures/001_a=b, c_variation_02.png",
        (f"image={tmp_path / 'two'}", "mode=interpolate", "num=3"): "interpolate_two/interpolation.gif",
        (image, "mode=traverse", "num=3", "num_dims=2"): "traverse_transparent (1)/transparent (1)_traversal.png",
        ("split=test", "mode=reconstruct", "num_pictures=4"): "reconstruct_test/reconstruction.png",
        (image, "mode=arithmetic", "plus=1", "minus=0", "num=2"): "arithmetic_transparent (1)/arithmetic.png",
    }
    for arguments, name in expected.items():
        done = here("vary", f"run={moved}", *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert (moved / "vary" / name).is_file(), (arguments, done.stdout)
        assert ("left out" in done.stderr) == (arguments[0] == f"image={pictures}"), done.stderr
    assert not list((moved / "vary").rglob("*.partial"))
    singles = sorted(path.name for path in (moved / "vary" / "reconstruct_test").glob("0*.png"))
    assert len(singles) == 4
    assert all(re.fullmatch(r"(\d{6})_flower_\1_reconstruction.png", name) for name in singles), singles  # of the files
    assert not (tmp_path / "outputs").exists()
    first = (moved / "vary" / "variations_transparent (1)" / "variations.png").read_bytes()
    again = command("vary", f"run={moved}", image, "num=3", "scale=1", f"out={tmp_path / 'again'}")
    assert again.returncode == 0
    assert (tmp_path / "again" / "variations.png").read_bytes() == first


def test_mistakes_are_one_line(here: Command, run: Path, pictures: Path, tmp_path: Path) -> None:
    image = f"image={pictures / 'grey.png'}"
    wrong = {
        (image,): "run must be given",
        (f"run={run}",): "give the pictures",
        ("run=typo", image): "run=",
        (f"run={run}", "image=typo.png"): "typo.png does not exist",
        (f"run={run}", image, "mode=varations"): "did you mean variations?",
        (f"run={run}", image, "scale=0"): "scale=0",
        (f"run={run}", image, "scal=1"): "did you mean scale?",
        (f"run={run}", f"image={pictures / 'broken.jpg'}"): "cannot be read",
        (f"run={run}", image, "mode=arithmetic"): "plus=CLASS",
        (f"run={run}", image, "mode=arithmetic", "plus=rose", "minus=0"): "there is no class rose",
        (f"run={run}", "-m", image): "-m is not an option",
    }
    for arguments, words in wrong.items():
        done = here("vary", *arguments)
        lines = done.stderr.strip().splitlines()
        assert (done.returncode, len(lines)) == (2, 1), (arguments, done.stderr)
        assert words in lines[0], arguments
    assert not list(run.glob("vary/*"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "variations.png").write_text("mine")
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in {
        (image, f"out={taken}"): "nothing is overwritten",
        (image, "mode=interpolate"): "two pictures or more",
        (f"image={empty}",): "image=",
        (image, "mode=arithmetic", "plus=colt's foot, red", "minus=0"): "there is no class colt's foot, red",
        ("split=train", "num=10000", "num_pictures=1000"): "too many at once",
    }.items():
        done = here("vary", f"run={run}", *arguments)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), (arguments, done.stderr)
        assert words in done.stderr, arguments
    assert (taken / "variations.png").read_text() == "mine"
    assert not list(run.glob("vary/*"))


def test_a_wrong_class_name_is_refused_before_the_model_is_loaded(
    here: Command, diffusion_run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(flowergen, "load", load)
    for options in (("mode=img2img", "classes=[rose]"), ("mode=arithmetic", "plus=0", "minus=rose")):
        done = here("vary", f"run={diffusion_run}", f"image={pictures / 'grey.png'}", *options)
        assert done.returncode == 2
        assert "there is no class rose" in done.stderr


def test_a_full_disk_is_one_line(here: Command, run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done = here("vary", f"run={run}", f"image={pictures / 'grey.png'}")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "No space left" in done.stderr
    assert not list(run.glob("vary/*"))


def test_another_split_than_the_run_s_is_refused(here: Command, run: Path) -> None:
    """Held-out ones might be training pictures."""
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("split_seed: 0", "split_seed: 1"))
    done = here("vary", f"run={run}", "split=test", "mode=reconstruct")
    assert done.returncode == 2
    assert "pictures, labels or split" in done.stderr


def test_help_lists_modes_and_keys(here: Command) -> None:
    done = here("vary", "--help")
    assert done.returncode == 0
    for words in ("mode=traverse", "scale: auto", "RUN is a run folder"):
        assert words in done.stdout


def test_edits_of_a_diffusion_model_make_their_pictures(
    here: Command, diffusion_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """Two classes, and a mask of the picture's size whose left half is white."""
    mask = np.zeros((50, 70), dtype=np.uint8)
    mask[:, :35] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = (f"run={diffusion_run}", f"image={pictures / 'grey.png'}", "classes=[0,1]", "steps=4", "guidance_scale=1.5")
    expected = {
        ("mode=img2img", "strength=0.5", "num=2"): ("img2img", 2),
        ("mode=inpaint", f"mask={tmp_path / 'mask.png'}", "num=1"): ("inpaint", 1),
        ("mode=invert",): ("invert", 1),
    }
    for arguments, (mode, num) in expected.items():
        out = tmp_path / mode
        done = here("vary", *common, *arguments, f"out={out}")
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert "columns: original, reconstruction, then" in done.stdout
        names = [f"grey_{mode}_{label:02d}_{j + 1:02d}.png" for label in range(2) for j in range(num)]
        assert sorted(path.name for path in out.iterdir()) == sorted([f"{mode}.png", *names])
    painted = np.asarray(Image.open(tmp_path / "inpaint" / "grey_inpaint_00_01.png")).astype(int)
    fitted = np.asarray(Image.open(tmp_path / "inpaint" / "inpaint.png")).astype(int)[:32, :32]  # the original
    assert (painted[:, 17:] == fitted[:, 17:]).all()
    assert (painted[:, :15] != fitted[:, :15]).any()


def test_mistakes_in_edits_are_one_line(here: Command, run: Path, diffusion_run: Path, pictures: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "black.png")
    image = f"image={pictures / 'grey.png'}"
    wrong = {
        (f"run={run}", "mode=img2img"): "mode=img2img edits pictures with a diffusion model, and this run has none",
        (f"run={diffusion_run}", "mode=inpaint"): "mode=inpaint needs mask=FILE",
        (f"run={diffusion_run}", "mode=inpaint", f"mask={tmp_path / 'black.png'}"): "has no white part",
        (f"run={diffusion_run}", "mode=inpaint", f"mask={pictures / 'broken.jpg'}"): "broken.jpg cannot be read",
        (f"run={diffusion_run}", "mode=img2img", "strength=1.5"): "strength=1.5 must be from 0 to 1",
        (f"run={diffusion_run}", "mode=img2img", "classes=[rose]"): "there is no class rose",
        (f"run={diffusion_run}", "mode=img2img", "steps=2000"): "as many steps",
        (f"run={diffusion_run}", "mode=img2img", "sampler=heun"): "heun follows a flow",
    }
    for arguments, words in wrong.items():
        done = here("vary", *arguments, image, f"out={tmp_path / 'out'}")
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), (arguments, done.stderr)
        assert words in done.stderr, arguments
    assert not (tmp_path / "out").exists()
    done = here("vary", f"run={diffusion_run}", image, "mode=invert", "strength=0.5", f"out={tmp_path / 'out'}")
    assert done.stderr.strip() == "strength= has no effect here: it is for mode=img2img"
