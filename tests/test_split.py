"""``python -m flowergen.split`` as its users meet it: real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command

TARGETS = ("source=my pictures", "train=my data/train", "test=my data/test")


def test_the_counts_the_folders_and_the_next_command_are_printed(
    command: Command, picture_folder: Path, tmp_path: Path
) -> None:
    """60 pictures, 12 of them for test; what is left alone is on stderr."""
    (picture_folder / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("a.txt", "roses/b.csv", "c.zip", ".d.txt"):
        (picture_folder / name).touch()
    for _ in range(2):  # a second time, all is there
        done = command("split", *TARGETS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "48 training images, 12 test images",
            f"train  {tmp_path}/my data/train",
            f"test   {tmp_path}/my data/test",
            f"next   python -m flowergen.train data=image_folder 'data.root={tmp_path}/my data'",
        ]
        unreadable, others = done.stderr.splitlines()
        assert unreadable.startswith("unreadable, left in place: cut.jpg (")
        assert others == "3 other files left alone"
    assert len(list((tmp_path / "my data/train/roses").iterdir())) == 24


def test_with_val_there_are_three_numbers(command: Command, picture_folder: Path, tmp_path: Path) -> None:
    done = command("split", "source=my pictures", "train=t", "val=v", "test=e", "test_size=0.15", "val_size=0.1", "mode=link")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "45 training images, 6 validation images, 9 test images"
    assert "next" not in done.stdout  # no folder names that training knows
    assert done.stderr == ""
    assert all(path.is_symlink() and path.exists() for path in (tmp_path / "v").rglob("*.png"))


def test_odd_folder_names_are_taken_as_typed(command: Command, picture_folder: Path, tmp_path: Path) -> None:
    source = picture_folder.rename(tmp_path / "it's a=$x, {b} [ü]\n(1)")
    done = command("split", f"source={source.name}", "train=~nobody here/Größe '1'", 'test=~nobody here/"2"')
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "~nobody here/Größe '1'").rglob("*.png"))) == 48


@pytest.mark.slow
def test_the_next_command_trains_on_this_split(
    command: Command, picture_folder: Path, tmp_path: Path, tiny_run: tuple[str, ...]
) -> None:
    """48 pictures less the tenth that training takes for val, and 12 for test."""
    assert command("split", *TARGETS).returncode == 0
    tiny = [key for key in tiny_run if not key.startswith(("data.num_", "trainer.max_epochs"))]
    done = command("train", "data=image_folder", "data.root=my data", "trainer.max_epochs=1", *tiny)
    assert done.returncode == 0, done.stderr
    assert "43 train" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train=a", "test=b"], "source must be given: source=..."),
        (["source=my pictures", "train=a"], "test must be given: test=..."),
        (["source=nowhere", "train=a", "test=b"], "is not an existing folder"),
        ([*TARGETS, "test_size=0"], "test_size=0 must be above 0 and below 1"),
        ([*TARGETS, "test_size=5"], "test_size=5 must be above 0 and below 1"),
        ([*TARGETS, "mode=cpoy"], "mode=cpoy must be copy or link or move: did you mean copy?"),
        ([*TARGETS, "val_size=0.1"], "val_size=0.1 needs a folder: give val=DIR"),
        ([*TARGETS, "testsize=0.1"], "there is no key testsize: did you mean test_size?"),
        (["source=my pictures", "train=my pictures/train", "test=b"], "give separate folders, none inside another"),
    ],
)
def test_errors_are_one_line_and_touch_nothing(
    command: Command, picture_folder: Path, tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = command("split", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert list(tmp_path.iterdir()) == [picture_folder]
    assert len(list(picture_folder.rglob("*"))) == 62


@pytest.mark.skipif(os.name != "posix", reason="no ulimit")
def test_a_disk_that_is_full_is_one_line_and_running_again_completes(
    picture_folder: Path, tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """A limit on the size of files stands in for it: the large picture cannot be written."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(picture_folder / "roses/large.png")
    split = f"{sys.executable} -m flowergen.split 'source=my pictures' train=a test=b"
    outcomes = []
    for shell in (f"ulimit -f 8; {split}", split):
        done = subprocess.run(
            ["bash", "-c", shell],
            cwd=tmp_path,
            env=process_environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        outcomes.append((done.returncode, done.stderr, sum(path.is_file() for path in tmp_path.glob("[ab]/**/*"))))
    (status, stderr, num), second = outcomes
    assert status == 2
    assert len(stderr.splitlines()) == 1
    assert "could not copy roses/large.png to " in stderr
    assert "run the same command again" in stderr
    assert num < 60
    assert second == (0, "", 61)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(command: Command, picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir(mode=0o555)
    done = command("split", *TARGETS)
    assert done.returncode == 2
    assert f"get permission to write, in {tmp_path}/my data; then run the same command again" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_leaves_no_partial_picture_and_running_again_completes(
    command: Command, tmp_path: Path, process_environment: dict[str, str]
) -> None:
    (tmp_path / "s").mkdir()
    for number in range(800):
        (tmp_path / f"s/{number}.ppm").write_bytes(b"P6 64 64 255\n" + number.to_bytes(2, "big") * 6144)
    arguments = ("source=s", "train=a", "test=b", "mode=move")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments], cwd=tmp_path, env=process_environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("a/*.ppm"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert (process.wait(60), process.communicate()[1]) == (130, "")
    visible = [path for folder in "ab" for path in (tmp_path / folder).glob("*.ppm")]
    assert 3 <= len(visible) < 800
    assert {path.stat().st_size for path in visible} == {13 + 64 * 64 * 3}
    assert not list(tmp_path.rglob(".flowergen-split-*"))
    done = command("split", *arguments)
    assert done.stdout.splitlines()[0] == "640 training images, 160 test images"
    assert not list((tmp_path / "s").iterdir())


SLOWLY = """
import os, time
from flowergen import split
from flowergen.app.command import one_line_errors

link = os.link
os.link = lambda *paths: (time.sleep(0.02), link(*paths))
one_line_errors(split.main)
"""


def test_help_is_written_for_people(command: Command) -> None:
    done = command("split", "--help")
    assert done.returncode == 0
    for words in ("source=DIR train=DIR test=DIR", "mode: copy # copy | link", "run an interrupted split again"):
        assert words in done.stdout, words
    assert "python -m flowergen.split" in command("").stdout
