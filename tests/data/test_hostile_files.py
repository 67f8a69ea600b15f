"""Files, names and links that somebody made to hang, crash or fill the machine."""

import errno
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from flowergen.data import decoding, listing, reading
from flowergen.data.cache import cached_images
from flowergen.data.decoding import in_order
from flowergen.data.listing import list_image_folder
from flowergen.data.reading import UnreadablePicture, bytes_of, read_rgb
from flowergen.data.split_folders import split_dataset
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape

GREY = np.full((8, 8, 3), 90, dtype=np.uint8)


def jpeg(**options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(GREY).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one bit, with chunks in front of its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * min(height, 64))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    framed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def read_within(seconds: float, path: Path) -> object:
    """What becomes of a file, in a thread that may hang."""
    result: list[object] = []

    def read() -> None:
        try:
            result.append(read_rgb(path))
        except UnreadablePicture as error:
            result.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else "hangs"


# ---- What is no file
def test_pipes_sockets_and_devices_are_refused_without_being_opened(tmp_path: Path) -> None:
    """To open a pipe that nobody writes to waits for ever; a device may never end. Also behind links."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))  # such names have 108 bytes at most
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "socket.jpg", "zero.jpg", "link.jpg"):
        assert read_within(5, tmp_path / name) == "a pipe or a device", name


def test_a_folder_lists_and_splits_what_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    """No pipe, no device, no socket; names with line breaks, terminal codes and bytes that are no text do no harm."""
    source = tmp_path / "source"
    names = [
        f"{kind}/{stem}{number}.jpg"
        for kind in ("a\nb", "\x1b[2J\r", os.fsdecode(b"\xff\xfe"), "\u202egpj")
        for number, stem in enumerate(("x\ny", "\x1b]0;title\x07", os.fsdecode(b"\x80"), "n" * 250))
    ]
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(BytesIO(), "PNG")
        buffer = BytesIO()
        Image.new("RGB", (9, 9), (15 * number, 0, 0)).save(buffer, "PNG")
        (source / name).write_bytes(buffer.getvalue())
    os.mkfifo(source / "a\nb" / "pipe.jpg")
    (source / "a\nb" / "zero.jpg").symlink_to("/dev/zero")
    (source / "a\nb" / "itself.txt").symlink_to("itself.txt")
    found = list_image_folder(source)
    assert sorted(found.names) == sorted(names)
    assert all(found.read(row)[0].shape == (9, 9, 3) for row in range(len(names)))
    split = split_dataset(source, tmp_path / "train", tmp_path / "test", test_size=0.25)
    assert (split.counts, split.unreadable) == ({"train": 12, "test": 4}, ())
    copies = {str(path.relative_to(folder)) for folder in split.folders.values() for path in folder.rglob("*.jpg")}
    assert copies == set(names)


# ---- Links
def test_links_in_circles_are_dead_links(tmp_path: Path) -> None:
    """a -> b -> a and a link to itself: unreadable pictures by their names, else nothing; links upwards end."""
    root = tmp_path / "root"
    (root / "rose" / "deep").mkdir(parents=True)
    Image.fromarray(GREY).save(root / "rose" / "deep" / "x.png")
    for name, target in {"a.png": "b.png", "b.png": "a.png", "c": "d", "d": "c", "itself": "itself", "dead": "nowhere"}.items():
        (root / name).symlink_to(target)
    (root / "rose" / "up").symlink_to("..")
    (root / "rose" / "deep" / "here").symlink_to(".")
    found = list_image_folder(root)
    assert found.names == ("a.png", "b.png", "rose/deep/x.png")
    with pytest.raises(UnreadablePicture, match=os.strerror(errno.ELOOP)):
        found.read(0)
    assert found.read(2)[0].shape == (8, 8, 3)


# ---- Sizes
def test_a_file_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Here of one byte too much and sparse; the largest picture that Pillow takes has half a GiB without compression."""
    with open(tmp_path / "x.jpg", "wb") as file:
        file.truncate(reading.MAX_BYTES + 1)
    with pytest.raises(UnreadablePicture, match="1,073,741,825 bytes, too large for a picture"):
        bytes_of(tmp_path / "x.jpg")
    assert reading.MAX_BYTES > 4 * Image.MAX_IMAGE_PIXELS * 2 * 3 // 4


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG", "PPM"])
def test_a_small_file_that_declares_a_giant_is_refused_by_its_head(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any pixel is decoded."""
    buffer = BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, image_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 200 // 2 - 1)

    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(UnreadablePicture, match="bomb"):
        read_rgb(buffer.getvalue())


def test_twenty_thousand_pixels_squared_are_refused() -> None:
    """400 megapixels in a kilobyte."""
    data = png(20_000, 20_000)
    assert len(data) < 1000
    with pytest.raises(UnreadablePicture, match="400000000 pixels"):
        read_rgb(data)


def test_text_and_profiles_that_unpack_to_giants_are_refused_or_left_packed() -> None:
    """Pillow unpacks 1 MiB of a text and 64 MiB of all texts, and a profile within as much."""
    packed = zlib.compress(bytes(2**25), 9)
    for chunks in ([(b"zTXt", b"k\0\0" + packed)], [(b"iCCP", b"p\0\0" + packed)], [(b"iTXt", b"k\0\1\0\0\0" + packed)]):
        try:
            assert read_rgb(png(8, 8, *chunks)).shape == (8, 8, 3)
        except UnreadablePicture as error:
            assert "too large" in str(error).lower()  # noqa: PT017


def test_only_the_first_of_a_thousand_frames_is_decoded() -> None:
    frames = [Image.new("L", (8, 8), number % 251) for number in range(1000)]
    for image_format in ("TIFF", "GIF", "WEBP"):
        buffer = BytesIO()
        frames[7].save(buffer, image_format, save_all=True, append_images=frames)
        assert np.abs(read_rgb(buffer.getvalue()).astype(int) - 7).max() <= 3


def test_only_so_many_pixels_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve threads, pictures of 64 pixels, room for 200: three at a time; one above the bound comes alone, and all come."""
    monkeypatch.setattr(reading, "PIXELS_AT_ONCE", 200)
    monkeypatch.setattr(reading, "_pixels_left", 200)
    now, most, guard = [0], [0], threading.Lock()
    load = ImageFile.ImageFile.load

    def slowly(image: ImageFile.ImageFile) -> Any:
        pixels = min(200, image.width * image.height)
        with guard:
            now[0] += pixels
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with guard:
            now[0] -= pixels
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", slowly)
    large = BytesIO()
    Image.new("RGB", (40, 40)).save(large, "PNG")
    small = BytesIO()
    Image.fromarray(GREY).save(small, "PNG")
    pictures = [large.getvalue() if row % 9 == 4 else small.getvalue() for row in range(36)]
    pictures[20] = pictures[20][:-30]  # one that does not decode gives its pixels back

    def decode(row: int) -> tuple[int, ...]:
        try:
            return read_rgb(pictures[row]).shape
        except UnreadablePicture:
            return ()

    shapes = list(in_order(decode, [""] * 36, num_threads=12))
    assert shapes == [() if row == 20 else (40, 40, 3) if row % 9 == 4 else (8, 8, 3) for row in range(36)]
    assert most[0] in (192, 200)
    assert reading._pixels_left == 200


# ---- Time
def with_scans(num: int, thumbnail: bytes = b"", behind: bytes = b"") -> bytes:
    """A progressive JPEG in which the last scan is repeated until there are so many."""
    data = jpeg(progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) == 10, "libjpeg's own script"
    last, end = data[starts[-1] : -2], data[-2:]
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    return data[:2] + comment + data[2:-2] + last * (num - 10) + end + behind


def test_a_jpeg_of_a_thousand_scans_is_refused_and_one_of_a_hundred_is_not() -> None:
    """Each scan goes over the whole picture, and of a uniform one a few bytes code it."""
    assert np.abs(read_rgb(with_scans(reading.MAX_SCANS)).astype(int) - 90).max() <= 2
    for data in (with_scans(reading.MAX_SCANS + 1), with_scans(1000), with_scans(1000).replace(b"\xff\xda", b"\xff\xff\xda")):
        with pytest.raises(UnreadablePicture, match="more than 100 scans"):
            read_rgb(data)


def test_scans_of_thumbnails_and_of_a_film_behind_the_picture_do_not_count() -> None:
    """Telephones store thumbnails in segments and short films after the end; any bytes may be in those. An end in a segment
    hides no scans."""
    noise = b"\xff\xda\x00\x08" * 500
    assert np.abs(read_rgb(with_scans(10, thumbnail=noise, behind=b"\0\0" + noise)).astype(int) - 90).max() <= 2
    with pytest.raises(UnreadablePicture, match="more than 100 scans"):
        read_rgb(with_scans(200, thumbnail=b"\xff\xd9", behind=noise))


def test_a_picture_that_takes_long_is_named_while_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Again after twice the time; the others are not, and all come in order."""
    monkeypatch.setattr(decoding, "SLOW_SECONDS", 0.1)

    def decode(row: int) -> int:
        time.sleep(1 if row == 3 else 0)
        return row

    names = [f"picture\n{row}.jpg" for row in range(2 * decoding.PICTURES_AHEAD + 3)]
    assert list(in_order(decode, names, num_threads=2)) == list(range(len(names)))
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 2 <= len(messages) <= 3  # after 0.1, 0.3 and 0.7 s
    assert set(messages) == {"still decoding picture\\n3.jpg: if it does not finish, stop the command and remove the file"}


def test_what_is_queued_is_dropped_when_nobody_wants_it() -> None:
    """After an error or Ctrl-C the queue of 256 pictures is not decoded to its end."""
    done = []

    def decode(row: int) -> int:
        time.sleep(0.01)
        done.append(row)
        return row

    results = in_order(decode, [""] * 200, num_threads=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(done) < 20


# ---- Names
def test_class_names_are_one_line_of_text_whatever_the_folders_are_called(tmp_path: Path) -> None:
    """No line break, terminal code, reversal or half a character reaches grids, checkpoints and TensorBoard."""
    folders = {
        "a\nb": "a\\nb",
        "\x1b[31mred\r": "\\x1b[31mred\\r",
        os.fsdecode(b"bad \xff"): "bad \\udcff",
        "\u202eevil": "\\u202eevil",
        "Blüte 百合": "Blüte 百合",
        "...": None,  # hidden, as all that begin with a dot
    }
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(png(8, 8))
    names = list_image_folder(tmp_path).class_names
    assert set(names) == {name for name in folders.values() if name}
    assert all(name.isprintable() and name.encode() for name in names)


# ---- Files that change meanwhile
@pytest.mark.parametrize("change", ["vanishes", "is written to", "cannot be opened any more"])
@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_picture_that_changes_while_all_are_decoded_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, on_corrupt: Any
) -> None:
    """One line; else a disk that went away would leave a cache in which its pictures are unreadable for ever."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(root / f"{number}\n.png")
    found = list_image_folder(root)
    path = root / "4\n.png"
    if change == "vanishes":
        path.unlink()
    elif change == "is written to":
        path.write_bytes(path.read_bytes()[:50])
    else:
        monkeypatch.setattr(os, "access", lambda file, mode: Path(file) != path)
    with pytest.raises(UserError, match="has changed or vanished since the pictures were listed") as raised:
        cached_images(found, "toy", PictureShape.of(16), tmp_path / "cache", on_corrupt)
    assert "4\\n.png" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_file_that_vanishes_while_it_is_listed_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the names and their times; it is named like any other that cannot be read."""
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    names = listing.find_pictures(tmp_path, "data.root")[0]
    monkeypatch.setattr(os, "access", lambda *_: True)  # it was there a moment ago
    (tmp_path / "b.png").unlink()
    found = listing.listing_of(tmp_path, names, [-1, -1], (), None)
    with pytest.raises(UnreadablePicture, match="No such file"):
        found.read(1)


def test_white_is_that_of_the_whole_picture_where_it_is_scaled_in_strips() -> None:
    """Deep grey of 2.4 megapixels, dark but for its last row: as in float64 at once."""
    stored = np.arange(1200 * 2000, dtype=np.int32).reshape(1200, 2000) % 60_000
    stored[-1] = 2**30
    buffer = BytesIO()
    Image.fromarray(stored).save(buffer, "TIFF")
    expected = np.rint(stored.astype(np.float64) * 255 / (2**31 - 1))
    np.testing.assert_array_equal(read_rgb(buffer.getvalue()), expected[..., None].repeat(3, axis=-1))
    assert expected.max() == 128


def test_pictures_within_the_bound_need_little_memory(tmp_path: Path) -> None:
    """100 megapixels of grey decode in a process that may take 1.5 GB."""
    path = tmp_path / "large.png"
    Image.new("L", (10_000, 10_000), 90).save(path, compress_level=1)
    code = (
        "import resource, sys, warnings; from pathlib import Path; warnings.simplefilter('ignore')\n"
        "from flowergen.data.reading import read_rgb\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000,) * 2)\n"
        "print(read_rgb(Path(sys.argv[1]))[5000, 5000].tolist())"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc: memory cannot be bounded")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout == "[90, 90, 90]\n", done.stderr
