import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flowergen.data import cache
from flowergen.data.cache import CachedImages, cached_images, key_of
from flowergen.data.decoding import PICTURES_AHEAD
from flowergen.data.listing import Listing, list_image_folder
from flowergen.data.reading import Fit, UnreadablePicture, fit_picture
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape

SIZE_PX = 16
SHAPE = PictureShape.of(SIZE_PX)


class Collection:
    """Pictures of one grey level each, that count how often they are read."""

    def __init__(self, num: int, unreadable: tuple[int, ...] = (), fingerprint: str = "0"):
        self.num, self.unreadable, self.fingerprint = num, unreadable, fingerprint
        self.num_reads = 0

    def listing(self) -> Listing:
        names = tuple(f"picture {row}.png" for row in range(self.num))
        return Listing(names, np.full(self.num, -1), (), None, self.fingerprint, self.read)

    def read(self, row: int) -> tuple[np.ndarray, str]:
        self.num_reads += 1
        if row in self.unreadable:
            raise UnreadablePicture("broken\non purpose")
        return np.full((20, 30, 3), row % 251, dtype=np.uint8), f"{row:032x}"

    def cached(self, cache_dir: Path, on_corrupt: str = "error") -> CachedImages:
        return cached_images(self.listing(), "toy", SHAPE, cache_dir, on_corrupt, num_threads=2)  # type: ignore[arg-type]


def folders(cache_dir: Path) -> list[Path]:
    return sorted(path for path in cache_dir.iterdir() if path.is_dir())


# ---- Contents
def test_pictures_digests_and_rows_are_those_of_the_listing(tmp_path: Path) -> None:
    """In its order, over more pictures than are decoded ahead, and as a memory map that cannot be written to."""
    num = 2 * PICTURES_AHEAD + 17
    cached = Collection(num).cached(tmp_path)
    assert isinstance(cached.images, np.memmap)
    assert (cached.images.shape, cached.images.dtype) == ((num, 3, SIZE_PX, SIZE_PX), np.uint8)
    expected = (np.arange(num) % 251)[:, None, None, None]
    np.testing.assert_array_equal(cached.images, np.broadcast_to(expected, cached.images.shape))
    np.testing.assert_array_equal(cached.rows, np.arange(num))
    assert cached.digests.tolist() == [f"{row:032x}" for row in range(num)]
    assert cached.unreadable == ()
    with pytest.raises(ValueError, match="read-only"):
        cached.images[0] = 0


def test_files_are_cropped_and_resized_squares_in_a_plain_npy(tmp_path: Path, picture_folder: Path) -> None:
    """Each row is fit_picture of what Pillow reads; anyone can open the array with numpy, without pickles."""
    listing = list_image_folder(picture_folder)
    cached = cached_images(listing, "photos", SHAPE, tmp_path / "cache")
    for row, name in enumerate(listing.names):
        expected = fit_picture(np.asarray(Image.open(picture_folder / name).convert("RGB")), SHAPE)
        np.testing.assert_array_equal(cached.images[row], expected)
    (folder,) = folders(tmp_path / "cache")
    assert folder.name.startswith(f"photos_{SIZE_PX}px_")
    np.testing.assert_array_equal(np.load(folder / "images.npy", allow_pickle=False), cached.images)


def test_a_cache_is_built_once_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same listing and size: opened. Other files, size or transform: another cache beside it."""
    collection = Collection(5)
    collection.cached(tmp_path)
    collection.cached(tmp_path)
    assert collection.num_reads == 5
    Collection(5, fingerprint="1").cached(tmp_path)
    cached_images(collection.listing(), "toy", PictureShape.of(SIZE_PX + 1), tmp_path)
    monkeypatch.setattr(cache, "TRANSFORM_VERSION", cache.TRANSFORM_VERSION + 1)
    collection.cached(tmp_path)
    assert collection.num_reads == 15
    assert len(folders(tmp_path)) == 4


def test_a_touched_file_is_decoded_again_and_a_moved_folder_is_not(
    tmp_path: Path, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cached_images(list_image_folder(picture_folder), "photos", SHAPE, tmp_path / "cache")
    moved = Path(shutil.move(picture_folder, tmp_path / "elsewhere"))
    caplog.clear()
    cached_images(list_image_folder(moved), "photos", SHAPE, tmp_path / "cache")
    assert "decoding" not in caplog.text
    os.utime(moved / list_image_folder(moved).names[3])
    cached_images(list_image_folder(moved), "photos", SHAPE, tmp_path / "cache")
    assert "decoding 60 pictures to 16 px, once" in caplog.text
    assert "pictures/s" in caplog.text


def test_no_progress_bar_where_there_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Collection(5).cached(tmp_path)
    assert capfd.readouterr() == ("", "")


# ---- Shapes
def test_squares_in_colour_have_the_key_and_the_folder_that_they_always_had(tmp_path: Path) -> None:
    """Recorded: BLAKE2b of "1/16/0" and "1/64/0" (b2sum -l 128), version of the transform, side and fingerprint."""
    key = "02ae55269cbe3bbafd622836eb18cae4"
    assert Collection(5).cached(tmp_path).key == key
    assert [folder.name for folder in folders(tmp_path)] == ["toy_16px_02ae55269cbe3bba"]
    for size in (64, [64, 64]):
        assert key_of(Collection(5).listing(), PictureShape.of(size), "crop") == "6114cc837a48e3d10227e24e2d137743"


def test_every_shape_and_fit_has_a_cache_of_its_own(tmp_path: Path) -> None:
    """Collection's pictures are 20 x 30 px."""
    keys, fits = set(), list[Fit](["crop", "pad"])
    shapes = [PictureShape.of(size, channels) for size in (16, [16, 24], [24, 16]) for channels in (3, 1)]
    for shape in shapes:
        for fit in fits:
            for _ in range(2):
                cached = cached_images(Collection(5).listing(), "toy", shape, tmp_path, fit=fit)
                assert cached.images.shape == (5, *shape)
                has_border = fit == "pad" and (shape.height, shape.width) != (16, 24)
                assert (cached.images[4, :, 0, 0] == (0 if has_border else 4)).all()
            keys.add(cached.key)
    assert len(keys) == len(folders(tmp_path)) == 12
    names = {folder.name.rpartition("_")[0] for folder in folders(tmp_path)}
    assert {"toy_16px", "toy_16px_grey_pad", "toy_16x24px", "toy_24x16px_grey", "toy_16x24px_pad"} <= names


# ---- Pictures that do not decode
def test_all_unreadable_pictures_are_named_in_one_line_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are found in one pass; the rest is cached, so that skipping them afterwards decodes nothing again."""
    bad = (0, 3, PICTURES_AHEAD, PICTURES_AHEAD + 9)
    collection = Collection(PICTURES_AHEAD + 10, bad)
    with pytest.raises(UserError) as raised:
        collection.cached(tmp_path)
    message = str(raised.value)
    assert all(f"picture {row}.png (broken\\non purpose)" in message for row in bad)
    assert f"4 of {collection.num} pictures" in message
    assert "data.on_corrupt=skip" in message
    assert "\n" not in message

    cached = collection.cached(tmp_path, "skip")
    assert collection.num_reads == collection.num
    assert "4 of 266 pictures cannot be decoded and are skipped" in caplog.text
    good = np.setdiff1d(np.arange(collection.num), bad)
    np.testing.assert_array_equal(cached.rows, good)
    np.testing.assert_array_equal(cached.images[:, 0, 0, 0], good % 251)
    np.testing.assert_array_equal(cached.images[:, 2, -1, -1], good % 251)
    assert cached.digests.tolist() == [f"{row:032x}" for row in good]
    assert [entry.split(" (")[0] for entry in cached.unreadable] == [f"picture {row}.png" for row in bad]


def test_a_collection_without_one_readable_picture_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 4 pictures can be decoded, for example picture 0\.png"):
        Collection(4, (0, 1, 2, 3)).cached(tmp_path, "skip")
    assert folders(tmp_path) == []


# ---- Damage
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "images.npy", (folder / "images.npy").stat().st_size - 1),
        lambda folder: os.truncate(folder / "images.npy", 0),
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "images.npy").write_bytes(b"something else"),
        lambda folder: (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes().replace(b")", b" ", 1)),
        lambda folder: np.save(folder / "images.npy", np.zeros((5, 3, SIZE_PX, SIZE_PX), dtype=np.float32)),
        lambda folder: np.save(folder / "images.npy", np.zeros((4, 3, SIZE_PX, SIZE_PX), dtype=np.uint8)),
        lambda folder: np.save(folder / "images.npy", np.array([{}]), allow_pickle=True),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_bytes((folder / "meta.json").read_bytes()[:-9]),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "meta.json").write_text(
            json.dumps(json.loads((folder / "meta.json").read_text()) | {"key": "another"})
        ),
        lambda folder: folder.rename(folder.with_suffix(".old")) and folder.touch(),
    ],
    ids=range(13),
)
def test_a_damaged_or_foreign_cache_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object) -> None:
    """Truncated, missing, pickled, of another shape or type, with another key, or a file in its place."""
    collection = Collection(5)
    collection.cached(tmp_path)
    assert callable(damage)
    damage(folders(tmp_path)[0])
    cached = collection.cached(tmp_path)
    assert collection.num_reads == 10
    assert "decoding again" in caplog.text
    np.testing.assert_array_equal(cached.images[:, 0, 0, 0], np.arange(5))
    collection.cached(tmp_path)
    assert collection.num_reads == 10


# ---- Disks
def test_an_existing_cache_opens_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk: no lock, no folder (root may write anywhere, so writing is made to fail here)."""
    collection = Collection(5)
    collection.cached(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(collection.cached(tmp_path).rows) == 5
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="Read-only file system"):
        Collection(5, fingerprint="1").cached(tmp_path)


def test_a_full_disk_says_how_much_is_needed_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind that would fill it further."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as raised:
        Collection(5).cached(tmp_path)
    message = str(raised.value)
    for part in (f"{5 * (3 * SIZE_PX**2 + 36):,} bytes", str(tmp_path), "No space left on device", "paths.cache_dir="):
        assert part in message
    assert folders(tmp_path) == []


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, used=total - free, free=free))


def test_what_will_not_fit_is_refused_before_a_picture_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with what is needed, what is left, where, and the option; an existing cache opens on a full disk."""
    there, collection, needed = Collection(5, fingerprint="1"), Collection(5), 5 * (3 * SIZE_PX**2 + 36)
    there.cached(tmp_path)
    disk(monkeypatch, 10**9, needed - 1)
    there.cached(tmp_path)
    with pytest.raises(UserError) as raised:
        collection.cached(tmp_path)
    for part in (f"{needed:,} bytes", f"{needed - 1:,} left", str(tmp_path), "paths.cache_dir="):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert collection.num_reads == 0
    assert len(folders(tmp_path)) == 1

    for total, free in ((10**9, needed), (0, 0)):  # it fits exactly; a file system that does not know
        disk(monkeypatch, total, free)
        assert len(Collection(5, fingerprint=f"{free}").cached(tmp_path).rows) == 5


def test_room_that_a_killed_build_took_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary folder is removed before the disk is asked."""
    Collection(5).cached(tmp_path)
    (folder,) = folders(tmp_path)
    stale = folder.rename(folder.with_name(folder.name + ".tmp"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=0 if stale.exists() else 10**6))
    assert len(Collection(5).cached(tmp_path).rows) == 5


def test_a_file_that_cannot_grow_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The operating system's own refusal, in mid-write, which no look at the disk foretells: such as a quota."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    code = limited + BUILDER.replace(
        "cached = cached_images", "from flowergen.errors import UserError\ntry:\n    cached_images"
    )
    code = code[: code.index("print(")] + "except UserError as error:\n    print(error)\n"
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "reads"), "100", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "the decoded pictures, 80,400 bytes, cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert folders(tmp_path / "cache") == []


def test_a_cache_dir_that_cannot_be_made_is_the_user_s_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"paths\.cache_dir="):
        Collection(5).cached(tmp_path / "file" / "cache")


# ---- Several processes
BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from flowergen.data.cache import cached_images
from flowergen.data.listing import Listing
from flowergen.picture_shape import PictureShape

cache_dir, reads, num, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])

def read(row):
    with open(reads, "ab") as file:
        file.write(b".")
    time.sleep(seconds)
    return np.full((20, 20, 3), row, dtype=np.uint8), f"{row:032x}"

names = tuple(f"picture {row}.png" for row in range(num))
listing = Listing(names, np.full(num, -1), (), None, "0", read)
cached = cached_images(listing, "toy", PictureShape.of(16), cache_dir, num_threads=2)
print(cached.images[:, 0, 0, 0].tolist() == list(range(num)))
"""


def builder(cache_dir: Path, reads: Path, num: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BUILDER, str(cache_dir), str(reads), str(num), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_build_that_was_killed_is_done_again(tmp_path: Path) -> None:
    """SIGKILL in mid-build leaves a free lock and a temporary folder, which the next builder removes; never a cache."""
    reads = tmp_path / "reads"
    process = builder(tmp_path / "cache", reads, num=100, seconds=0.05)
    while not reads.exists() or reads.stat().st_size < 10:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.suffix for path in folders(tmp_path / "cache")] == [".tmp"]

    collection = Collection(100)
    cached = collection.cached(tmp_path / "cache")
    assert collection.num_reads == 100
    np.testing.assert_array_equal(cached.images[:, 0, 0, 0], np.arange(100))
    assert [path.suffix for path in folders(tmp_path / "cache")] == [""]


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    """The second waits for the first and uses its cache."""
    processes = [builder(tmp_path / "cache", tmp_path / "reads", num=40, seconds=0.03) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["True\n"] * 2
    assert (tmp_path / "reads").stat().st_size == 40


def test_whoever_waits_takes_over_from_a_builder_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the first while the second waits: the second decodes all and has the same pictures."""
    cache_dir, waiting = tmp_path / "cache", tmp_path / "waiting"
    first = builder(cache_dir, tmp_path / "first", num=100, seconds=0.1)
    wait_for(lambda: size(tmp_path / "first") >= 4, first)
    told = f"import logging; logging.basicConfig(level=logging.INFO, filename={str(waiting)!r})\n"
    arguments = [sys.executable, "-c", told + BUILDER, str(cache_dir), str(tmp_path / "second"), "100", "0"]
    second = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: size(waiting) > 0 and "waiting for it" in waiting.read_text(), second)
    assert size(tmp_path / "second") == 0
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=60)[0] == "True\n"
    assert size(tmp_path / "second") == 100
    assert [path.suffix for path in folders(cache_dir)] == [""]


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.real_data
def test_photographs_of_all_sizes_are_cached_and_duplicates_share_a_digest(tmp_path: Path, photographs: Path) -> None:
    """Every photograph decodes, and digests are equal exactly where bytes are."""
    root = photographs / "flowers5_160px"
    listing = list_image_folder(root)
    cached = cached_images(listing, "flowers5", PictureShape.of(32), tmp_path)
    assert cached.images.shape == (3000, 3, 32, 32)
    num_distinct = len({(root / name).read_bytes() for name in listing.names})
    assert len(set(cached.digests.tolist())) == num_distinct < 3000
    assert cached.images[::100].std(axis=(1, 2, 3)).min() > 5
