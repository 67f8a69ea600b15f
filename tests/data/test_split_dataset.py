import errno
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowergen.data import listing, split_dataset, split_folders
from flowergen.data.listing import list_image_folder
from flowergen.errors import UserError

Tree = dict[bytes, tuple[bytes, int] | bytes]


def save_picture(path: Path | bytes, number: int) -> None:
    """Equal bytes for equal numbers, an mtime of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    os.utime(path, (1_000_000 + number, 1_000_000 + number))


def make_collection(root: Path, **num_of_class: int) -> Path:
    number = 0
    for name, num in num_of_class.items():
        folder = root / name
        folder.mkdir(parents=True)
        for _ in range(num):
            save_picture(folder / f"IMG ({number}).png", number)
            number += 1
    return root


def tree(*roots: Path) -> Tree:
    """Everything below the roots, hidden files too: bytes and mtime, or where a link leads."""
    found: Tree = {}
    for root in roots:
        for folder, _, files in os.walk(os.fsencode(root)):
            for file in files:
                path = os.path.join(folder, file)
                name = os.path.relpath(path, os.fsencode(root.parent))
                if os.path.islink(path):
                    found[name] = os.readlink(path)
                else:
                    mtime = 0 if file == b".flowergen-split" else os.stat(path).st_mtime_ns
                    with open(path, "rb") as stream:
                        found[name] = stream.read(), mtime
    return found


def pictures(folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_collection(tmp_path / "my flowers", roses=23, tulips=14, asters=7)


def folders(tmp_path: Path, *names: str) -> dict[str, Any]:
    return {name: tmp_path / "out" / name for name in names or ("train", "test")}


# ---- Numbers
@pytest.mark.parametrize("test_size", [0.2, 0.07, 0.1, 0.3, 0.55, 0.1 + 0.2, 0.999, 1e-6])
def test_test_gets_the_ceiling_of_its_fraction_free_of_float_fuzz(test_size: float) -> None:
    """Against exact fractions of the numbers as people mean them, for every size of a collection up to 2,000."""
    meant = Fraction(test_size).limit_denominator(10**6)
    for num in range(2000):
        assert split_folders._ceil(num * test_size) == math.ceil(meant * num)


def test_seven_percent_of_a_hundred_are_seven(tmp_path: Path) -> None:
    split = split_dataset(make_collection(tmp_path / "s", a=60, b=40), **folders(tmp_path), test_size=0.07)
    assert split.counts == {"train": 93, "test": 7}
    assert math.ceil(100 * 0.07) == 8


@pytest.mark.parametrize("seed", range(6))
def test_totals_are_exact_and_each_class_has_its_share_by_largest_remainder(tmp_path: Path, source: Path, seed: int) -> None:
    """44 pictures: ceil(8.8) to test, ceil(4.4) to val; 23, 14 and 7 share 9 as 4.70, 2.86, 1.43."""
    targets = folders(tmp_path, "train", "val", "test")
    split = split_dataset(source, **targets, val_size=0.1, seed=seed)
    assert split.counts == {"train": 30, "val": 5, "test": 9}
    assert Counter(Path(name).parent.name for name in pictures(targets["test"])) == {"roses": 5, "tulips": 3, "asters": 1}
    assert set.union(*map(pictures, targets.values())) == pictures(source)
    assert sum(len(pictures(folder)) for folder in targets.values()) == 44


@pytest.mark.parametrize("seed", range(4))
def test_byte_identical_duplicates_are_on_one_side(tmp_path: Path, seed: int) -> None:
    """Also across classes."""
    source = make_collection(tmp_path / "s", a=30, b=10)
    for number in range(0, 30, 2):
        shutil.copy(source / f"a/IMG ({number}).png", source / ("a" if number % 4 else "b") / f"again {number}.png")
    targets = folders(tmp_path)
    assert split_dataset(source, **targets, test_size=0.4, seed=seed).counts == {"train": 33, "test": 22}
    contents = [{path.read_bytes() for path in folder.rglob("*.png")} for folder in targets.values()]
    assert not contents[0] & contents[1]


def test_the_split_depends_on_the_seed_and_the_pictures_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the order in which the file system lists them, not on where they lie or on the mode."""
    first = split_dataset(source, **folders(tmp_path / "1"), seed=5)
    files = listing._files

    def shuffled(root: Path) -> list[str]:
        names = list(files(root))
        random.Random(1).shuffle(names)
        return names

    monkeypatch.setattr(listing, "_files", shuffled)
    moved = source.rename(tmp_path / "elsewhere")
    second = split_dataset(moved, **folders(tmp_path / "2"), seed=5, mode="move")
    assert [pictures(folder) for folder in first.folders.values()] == [pictures(f) for f in second.folders.values()]
    shutil.copytree(first.folders["train"], moved, dirs_exist_ok=True)
    shutil.copytree(first.folders["test"], moved, dirs_exist_ok=True)
    other = split_dataset(moved, **folders(tmp_path / "3"), seed=6)
    assert pictures(other.folders["test"]) != pictures(first.folders["test"])


def test_an_existing_collection_stays_split_as_it_is(tmp_path: Path) -> None:
    """Were this to change with a version, a second run could not complete the first."""
    (tmp_path / "s/a").mkdir(parents=True)
    for number in range(15):  # not PNG, whose bytes depend on the version of zlib
        (tmp_path / f"s/{'a/' if number % 2 else ''}{number}.ppm").write_bytes(b"P6 1 1 255\n" + bytes([number, 0, 0]))
    split = split_dataset(tmp_path / "s", **folders(tmp_path), seed=42)
    assert sorted(pictures(split.folders["test"])) == ["4.ppm", "6.ppm", "a/9.ppm"]


# ---- Modes
def test_a_copy_is_the_same_bytes_and_time_and_the_source_stays(tmp_path: Path, source: Path) -> None:
    before = tree(source)
    targets = folders(tmp_path)
    split_dataset(str(source), **{key: str(folder) for key, folder in targets.items()})
    assert tree(source) == before
    for folder in targets.values():
        for name, (data, mtime) in tree(folder).items():  # type: ignore[misc]
            assert (data, mtime) == before[os.path.join(b"my flowers", *name.split(b"/")[1:])]


def test_links_are_absolute_and_hold_when_the_source_was_given_relative(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    split = split_dataset(source.name, "o/train", "o/test", mode="link")
    monkeypatch.chdir("/")
    links = [path for folder in split.folders.values() for path in folder.rglob("*.png")]
    assert len(links) == 44
    assert all(path.is_symlink() and os.readlink(path).startswith(str(source)) and path.exists() for path in links)
    before = tree(tmp_path / "o")
    monkeypatch.chdir(tmp_path)
    split_dataset(source, "o/train", "o/test", mode="link")
    assert tree(tmp_path / "o") == before


@pytest.mark.parametrize("same_file_system", [True, False])
def test_a_move_keeps_every_picture_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, same_file_system: bool
) -> None:
    before = tree(source)
    if not same_file_system:
        monkeypatch.setattr(os, "link", fail(errno.EXDEV))
    split = split_dataset(source, **folders(tmp_path), mode="move")
    assert not tree(source)
    after = {name.split(b"/", 1)[1]: content for folder in split.folders.values() for name, content in tree(folder).items()}
    after.pop(b".flowergen-split")
    assert after == {name.split(b"/", 1)[1]: content for name, content in before.items()}


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev, reason="no second file system"
)
def test_a_move_crosses_file_systems(tmp_path: Path, source: Path) -> None:
    other = Path("/dev/shm") / f"flowergen-test-{os.getpid()}"
    try:
        assert split_dataset(source, other / "train", other / "test", mode="move").counts == {"train": 35, "test": 9}
        assert not tree(source)
        assert len(pictures(other)) == 44
    finally:
        shutil.rmtree(other, ignore_errors=True)


def test_a_move_out_of_a_folder_of_links_moves_the_pictures_not_the_links(tmp_path: Path, source: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for index, path in enumerate(sorted(source.rglob("*.png"))):
        (links / f"{index}.png").symlink_to(os.path.relpath(path, links))
    split = split_dataset(links, **folders(tmp_path), mode="move")
    assert not tree(links)
    assert all(not path.is_symlink() for folder in split.folders.values() for path in folder.rglob("*.png"))


# ---- What is left where it is
def test_what_does_not_decode_is_listed_and_left_and_other_files_are_counted(tmp_path: Path, source: Path) -> None:
    (source / "cut.PNG").write_bytes(next(source.rglob("*.png")).read_bytes()[:60])
    (source / "roses/empty\n.jpg").touch()
    (source / "dead.gif").symlink_to("nowhere")
    for name in ("notes.txt", "a.xcf", "tulips/labels.csv", ".hidden.png"):
        (source / name).write_bytes(b"x")
    split = split_dataset(source, **folders(tmp_path), mode="move")
    assert split.counts == {"train": 35, "test": 9}
    assert [line.split(" (")[0] for line in split.unreadable] == ["cut.PNG", "dead.gif", "roses/empty\\n.jpg"]
    assert split.unreadable[1:] == ("dead.gif (No such file or directory)", "roses/empty\\n.jpg (empty file)")
    assert split.num_others == 3
    assert {name.split(b"/", 1)[1].decode() for name in tree(source)} == {
        *("cut.PNG", "roses/empty\n.jpg", "dead.gif", "notes.txt", "a.xcf", "tulips/labels.csv", ".hidden.png")
    }


@pytest.mark.parametrize("mode", ["copy", "link", "move"])
def test_odd_names_survive(tmp_path: Path, mode: str) -> None:
    root = os.fsencode(tmp_path / "s")
    names = [b"a b.PNG", b"[1] (2).Jpg", "Blüte.jpeg".encode(), b'it\'s "so".bmp', b"new\nline.png", b"caf\xe9.tif", b"-x.webp"]
    for index, name in enumerate(names * 2):
        folder = [b"cl\xff\n [a]", "Größe '7'/innen".encode()][index // len(names)]
        os.makedirs(os.path.join(root, folder), exist_ok=True)
        save_picture(os.path.join(root, folder, name), index)
    expected = {name.split(b"/", 1)[1] for name in tree(tmp_path / "s")}
    split = split_dataset(tmp_path / "s", **folders(tmp_path), mode=mode)  # type: ignore[arg-type]
    assert split.counts == {"train": 11, "test": 3}
    found = {name.split(b"/", 1)[1] for folder in split.folders.values() for name in tree(folder)}
    assert found - {b".flowergen-split"} == expected
    if mode != "move":
        assert split_dataset(tmp_path / "s", **folders(tmp_path), mode=mode) == split  # type: ignore[arg-type]


def test_a_flat_folder_is_one_class_and_stays_flat(tmp_path: Path) -> None:
    source = make_collection(tmp_path / "s", **{".": 10})
    assert split_dataset(source, **folders(tmp_path)).counts == {"train": 8, "test": 2}
    assert all("/" not in name for name in pictures(tmp_path / "out/train"))


# ---- Refused, with nothing touched
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "my flowers/train"}, "train=.* is inside source="),
        ({"test": "up/../my flowers"}, "source=.* is the same folder as test="),
        ({"train": "."}, "source=.* is inside train="),
        ({"train": "a", "test": "a"}, "the same folder"),
        ({"train": "a", "test": "a/b"}, "test=.* is inside train="),
        ({"train": "link/train"}, "train=.* is inside source="),
        ({"val_size": 0.1}, "give val=DIR"),
        ({"val": "v"}, "give val_size= above 0, or leave val out"),
        ({"test_size": 0.0}, "test_size=0.0 must be above 0"),
        ({"test_size": 1.0}, "below 1"),
        ({"test_size": 0.7, "val_size": 0.3, "val": "v"}, "leave nothing to train on"),
        ({"test_size": 0.99}, "leave none for train"),
        ({"mode": "hardlink"}, "mode=hardlink must be copy, link or move"),
        ({"seed": -1}, "seed=-1"),
        ({"source": "none"}, "source=.* does not exist"),
        ({"test": "my flowers/roses/IMG (0).png"}, "test=.* exists and is not a folder"),
        ({"train": "dead"}, "train=.* exists and is not a folder"),
        ({"source": "up"}, "source=.* contains no pictures"),
    ],
)
def test_contradictions_are_refused_before_anything_is_touched(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "dead").symlink_to("nowhere")
    (tmp_path / "up").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        split_dataset(**{"source": source.name, "train": "train", "test": "test", **arguments})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_that_is_split_already_is_refused(tmp_path: Path) -> None:
    source = make_collection(tmp_path / "s", **{"train/a": 3, "train/b": 3, "test/a": 2})
    with pytest.raises(UserError, match="it is split already"):
        split_dataset(source, **folders(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_source_whose_pictures_all_look_the_same_is_refused(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "s").mkdir(exist_ok=True)
        save_picture(tmp_path / f"s/{number}.png", 0)
    with pytest.raises(UserError, match=r"5 pictures, 1 of them different, .* leave none for test"):
        split_dataset(tmp_path / "s", **folders(tmp_path))


def test_a_link_in_the_source_that_leads_into_a_target_is_refused(tmp_path: Path, source: Path) -> None:
    """Followed, it would make the move of a picture onto itself remove it."""
    split_dataset(source, **folders(tmp_path))
    for rest in ("train/asters", "train/tulips", "test"):
        shutil.rmtree(tmp_path / "out" / rest)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "roses").symlink_to(tmp_path / "out/train/roses")
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="links into a target"):
        split_dataset(tmp_path / "s", **folders(tmp_path), mode="move")
    assert tree(tmp_path / "out") == before


def test_a_class_folder_of_a_target_that_leads_elsewhere_is_refused(tmp_path: Path, source: Path) -> None:
    """Into the source above all: every picture would be found in its place, and be removed as moved."""
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/roses").symlink_to(source / "roses")
    before = tree(source)
    with pytest.raises(UserError, match=r"train/roses is a link to elsewhere"):
        split_dataset(source, **folders(tmp_path), mode="move")
    assert tree(source) == before


@pytest.mark.parametrize("mode", ["copy", "link", "move"])
def test_a_file_with_other_bytes_is_named_and_nothing_is_copied(tmp_path: Path, source: Path, mode: Any) -> None:
    dry = split_dataset(source, **folders(tmp_path / "dry"))
    name = sorted(pictures(dry.folders["test"]))[0]
    (tmp_path / "out/test" / name).parent.mkdir(parents=True)
    (tmp_path / "out/test" / name).write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"out/test/.*already exists") as error:
        split_dataset(source, **folders(tmp_path), mode=mode)
    assert name in str(error.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("mode", ["copy", "link", "move"])
@pytest.mark.parametrize("seed", range(5))
def test_targets_with_pictures_of_another_split_are_refused(tmp_path: Path, source: Path, mode: Any, seed: int) -> None:
    """One foreign picture is enough, even if the draw over all pictures would put it where it is."""
    (tmp_path / "out/train/roses").mkdir(parents=True)
    save_picture(tmp_path / "out/train/roses/foreign.png", 1000 + seed)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"foreign\.png is not part of this split"):
        split_dataset(source, **folders(tmp_path), mode=mode, seed=seed)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 43}, {"test_size": 0.4}])
@pytest.mark.parametrize("mode", ["copy", "link", "move"])
def test_another_seed_or_size_into_the_same_folders_is_refused(
    tmp_path: Path, source: Path, mode: Any, change: dict[str, Any]
) -> None:
    split_dataset(source, **folders(tmp_path), mode=mode)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is not part of this split but of one with another collection, seed or size"):
        split_dataset(source, **folders(tmp_path), mode=mode, **change)
    assert tree(tmp_path) == before


def test_copies_are_not_mistaken_for_links_nor_links_for_copies(tmp_path: Path, source: Path) -> None:
    """A move that took links for its pictures would remove what they lead to."""
    split_dataset(source, **folders(tmp_path), mode="link")
    for mode in ("copy", "move"):
        with pytest.raises(UserError, match="already exists and is not a copy of"):
            split_dataset(source, **folders(tmp_path), mode=mode)  # type: ignore[arg-type]
    assert len(pictures(source)) == 44


def test_a_foreign_picture_among_moved_ones_is_refused(tmp_path: Path, source: Path) -> None:
    split = split_dataset(source, **folders(tmp_path), mode="move")
    save_picture(split.folders["train"] / "roses/foreign.png", 1000)
    with pytest.raises(UserError, match="no longer contain the pictures with which the interrupted move began"):
        split_dataset(source, **folders(tmp_path), mode="move")


# ---- Interrupted
def fail(number: int, after: int = 0, original: Any = None) -> Any:
    """A function that raises OSError, from a call on."""
    calls = iter(range(after))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))
        return original(*args, **kwargs)

    return failing


@pytest.mark.parametrize(
    ("mode", "moment", "count"),
    [
        ("copy", "half a copy", 1),
        ("copy", "half a copy", 17),
        ("copy", "publish", 20),
        ("link", "link", 9),
        ("move", "publish", 1),
        ("move", "publish", 25),  # before a picture has its second name
        ("move", "remove", 30),  # when it has two
        ("move", "other file system", 12),
    ],
)
def test_a_killed_run_that_is_run_again_ends_as_one_that_was_not(
    tmp_path: Path, process_environment: dict[str, str], mode: str, moment: str, count: int
) -> None:
    """SIGKILL; the same files with the same bytes and times, in source and targets, hidden ones included."""
    results = []
    for killed in (False, True):
        home = tmp_path / str(killed)
        # the first class is moved first: were labels taken from what is left of the source, the draw would be another one
        source = make_collection(home / "flowers", asters=12, roses=23, tulips=14)
        targets = {name: home / "out" / name for name in ("train", "val", "test")}
        settings = {"source": source, **targets, "val_size": 0.1, "seed": 3, "mode": mode}
        if killed:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.killed_split", moment, str(count)),
                    *(f"{key}={value}" for key, value in settings.items()),
                ],
                env=process_environment, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
            assert done.returncode == -9, done.stderr
            visible = [path for folder in targets.values() for path in folder.rglob("*.png")]
            assert len(visible) in range(count - 1, 49)
            for path in visible:
                Image.open(path).load()
        split = split_dataset(**settings)
        assert split.counts == {"train": 34, "val": 5, "test": 10}
        found = tree(source, *targets.values())
        start = os.fsencode(home)
        results.append({name: os.path.relpath(at, start) if isinstance(at, bytes) else at for name, at in found.items()})
        assert split_dataset(**settings).counts == split.counts
        assert tree(source, *targets.values()) == found
    assert results[0] == results[1]


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room, in"), (errno.EACCES, "get permission to write")])
@pytest.mark.parametrize("mode", ["copy", "move"])
def test_a_full_disk_is_one_line_and_running_again_completes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, mode: Any
) -> None:
    everything = pictures(source)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail(errno.EXDEV))
        patch.setattr(shutil, "copy2", fail(number, after=15, original=shutil.copy2))
        with pytest.raises(UserError, match=f"{os.strerror(number)}: .*{remedy}.* run the same command again") as error:
            split_dataset(source, **folders(tmp_path), mode=mode)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob(".flowergen-split-*"))
    assert sum(len(pictures(folder)) for folder in folders(tmp_path).values()) == 15
    split = split_dataset(source, **folders(tmp_path), mode=mode)
    assert split.counts == {"train": 35, "test": 9}
    assert set.union(*map(pictures, split.folders.values())) == everything


def test_ctrl_c_leaves_no_partial_file(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split_dataset(source, **folders(tmp_path))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the file system has hard links."""
    copy2 = shutil.copy2

    def with_rival(path: Path, target: Path) -> None:
        copy2(path, target)
        (Path(target).parent / Path(path).name).write_bytes(b"rival")

    for number, link in enumerate((os.link, fail(errno.EPERM))):
        monkeypatch.setattr(shutil, "copy2", with_rival)
        monkeypatch.setattr(os, "link", link)
        targets = folders(tmp_path / str(number))
        with pytest.raises(UserError, match="File exists"):
            split_dataset(source, **targets)
        (rival,) = (path for folder in targets.values() for path in folder.rglob("*.png"))
        assert rival.read_bytes() == b"rival"


# ---- What comes next
def test_the_root_is_named_only_where_training_would_find_these_folders(tmp_path: Path, source: Path) -> None:
    def root(train: str, test: str) -> Path | None:
        return split_dataset(source, tmp_path / train, tmp_path / test).root

    assert root("a/train", "a/test") == tmp_path / "a"
    found = list_image_folder(tmp_path / "a")
    assert found.subsets is not None
    assert Counter(found.subsets.tolist()) == {"train": 35, "test": 9}
    assert root("b/Training Data", "b/test_images") == tmp_path / "b"
    assert root("c/train", "d/test") is None
    assert root("e/one", "e/two") is None
    assert root("f/test", "f/train") is None
    (tmp_path / "g/validation").mkdir(parents=True)
    assert root("g/train", "g/test") is None


def test_data_is_imported_without_torch(process_environment: dict[str, str]) -> None:
    code = "import sys, flowergen.data, flowergen.split; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=process_environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "False\n"
