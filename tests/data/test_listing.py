import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowergen.data.class_names import slug
from flowergen.data.flowers102 import list_flowers102
from flowergen.data.listing import Listing, _left_out, list_image_folder
from flowergen.data.reading import UnreadablePicture
from flowergen.errors import UserError

PICTURE = Image.new("RGB", (5, 4), (10, 20, 30))


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(path, "PNG") if path.suffix.lower() in (".png", ".jpg") else path.write_text("no picture")
    return root


def classes(listing: Listing) -> dict[str, str | None]:
    return {
        name: listing.class_names[label] if label >= 0 else None
        for name, label in zip(listing.names, listing.labels, strict=True)
    }


def subsets(listing: Listing) -> dict[str, str]:
    assert listing.subsets is not None
    return dict(zip(listing.names, listing.subsets.tolist(), strict=True))


# ---- Layouts
def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    listing = list_image_folder(tree(tmp_path, "b.png", "a.JPG", "notes.txt"))
    assert listing.names == ("a.JPG", "b.png")
    assert (listing.labels.tolist(), listing.labels.dtype) == ([-1, -1], np.int64)
    assert (listing.class_names, listing.subsets) == ((), None)


def test_the_first_folder_is_the_class_at_any_depth(tmp_path: Path) -> None:
    """Pictures beside the class folders are unlabelled; classes are in natural order."""
    listing = list_image_folder(tree(tmp_path, "kind 10/a.png", "kind 2/x/y/b.png", "Kind 1/c.png", "d.png"))
    assert listing.class_names == ("Kind 1", "kind 2", "kind 10")
    assert classes(listing) == {
        "Kind 1/c.png": "Kind 1",
        "kind 2/x/y/b.png": "kind 2",
        "kind 10/a.png": "kind 10",
        "d.png": None,
    }


def test_folders_that_all_pictures_share_mean_nothing(tmp_path: Path) -> None:
    """They stay in the names, which remain paths below the root."""
    listing = list_image_folder(tree(tmp_path, "set/pictures/rose/a.png", "set/pictures/lily/b.png", "set/readme.md"))
    assert classes(listing) == {"set/pictures/rose/a.png": "rose", "set/pictures/lily/b.png": "lily"}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training Data", "Validation Data", "Testing Data"),
        ("TRAIN_SET", "valid_set", "test_set"),
        ("training", "validation", "testing"),
        ("trainset", "val-images", "test images"),
    ],
)
def test_split_folders_are_recognised(tmp_path: Path, train: str, val: str, test: str) -> None:
    """Under their usual names and below shared folders; classes come from the folders inside."""
    class_of = {
        f"set/{train}/rose/a.png": "rose",
        f"set/{train}/lily/b.png": "lily",
        f"set/{val}/rose/c.png": "rose",
        f"set/{test}/d.png": None,
    }
    subset_of = dict(zip(class_of, ("train", "train", "val", "test"), strict=True))
    listing = list_image_folder(tree(tmp_path, *class_of))
    assert list(subsets(listing).values()) == [subset_of[name] for name in listing.names]
    assert list(classes(listing).values()) == [class_of[name] for name in listing.names]


@pytest.mark.parametrize("folders", [("train", "boat"), ("val", "test"), ("train", "training"), ("trainer", "test")])
def test_without_train_and_another_split_folder_they_are_classes(tmp_path: Path, folders: tuple[str, str]) -> None:
    listing = list_image_folder(tree(tmp_path, f"{folders[0]}/a.png", f"{folders[1]}/b.png"))
    assert listing.subsets is None
    assert set(listing.class_names) == set(folders)


def test_pictures_beside_split_folders_are_left_out_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listing = list_image_folder(tree(tmp_path, "train/a.png", "test/b.png", "preview.png", "extra/c.png"))
    assert subsets(listing) == {"train/a.png": "train", "test/b.png": "test"}
    assert "left out 2 pictures" in caplog.text


# ---- Files
def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path / ".data", "a.png", ".b.png", "._a.png", ".git/c.png", "__MACOSX/d.png", "x/.thumbs/e.png")
    assert list_image_folder(root).names == ("a.png",)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """A loop ends, a folder elsewhere is found, and one that is inside anyway keeps its real name."""
    elsewhere = tree(tmp_path / "elsewhere", "lily/a.png")
    root = tree(tmp_path / "root", "rose/b.png")
    (root / "rose" / "loop").symlink_to(root)
    (root / "iris").symlink_to(elsewhere / "lily")
    for name in ("again", "zinnia"):  # before and after the real one
        (root / name).symlink_to(root / "rose")
    assert classes(list_image_folder(root)) == {"iris/a.png": "iris", "rose/b.png": "rose"}


def test_a_dead_link_is_an_unreadable_picture(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.png")
    (root / "b.png").symlink_to(root / "gone.png")
    listing = list_image_folder(root)
    assert listing.names == ("a.png", "b.png")
    with pytest.raises(UnreadablePicture, match="No such file"):
        listing.read(1)


def test_file_names_may_hold_any_characters(tmp_path: Path) -> None:
    """Line breaks, umlauts and bytes that are no text are listed, hashed and read."""
    names = ["new\nline.png", "Blüte [1], 100%.png", os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        PICTURE.save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / name)
    listing = list_image_folder(tmp_path)
    assert set(listing.names) == set(names)
    assert all(listing.read(index)[0].tolist() == np.asarray(PICTURE).tolist() for index in range(3))


def test_reading_gives_pixels_and_a_digest_of_the_bytes(tmp_path: Path) -> None:
    """Digests are equal for equal bytes and for nothing else."""
    root = tree(tmp_path, "a.png", "b/copy.png")
    Image.new("RGB", (5, 4), (10, 20, 31)).save(root / "c.png")
    digests = {name: list_image_folder(root).read(row)[1] for row, name in enumerate(list_image_folder(root).names)}
    assert digests["a.png"] == digests["b/copy.png"] != digests["c.png"]


# ---- Fingerprint
def test_a_moved_folder_keeps_its_fingerprint_and_a_changed_one_does_not(tmp_path: Path) -> None:
    root = tree(tmp_path / "here", "rose/a.png", "lily/b.png")
    before = list_image_folder(root).fingerprint
    root = Path(shutil.move(root, tmp_path / "there"))
    assert list_image_folder(root).fingerprint == before
    (root / "notes.txt").write_text("not a picture")
    assert list_image_folder(root).fingerprint == before

    seen = {before}
    status = (root / "rose/a.png").stat()
    os.utime(root / "rose/a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(list_image_folder(root).fingerprint)
    (root / "rose/a.png").rename(root / "rose/c.png")
    seen.add(list_image_folder(root).fingerprint)
    tree(root, "rose/d.png")
    seen.add(list_image_folder(root).fingerprint)
    status = (root / "rose/d.png").stat()
    with open(root / "rose/d.png", "ab") as file:
        file.write(b"more")
    os.utime(root / "rose/d.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(list_image_folder(root).fingerprint)
    assert len(seen) == 5, "time, name, number and size each count"


# ---- What a user can mend
def test_a_root_without_pictures_gives_one_line_that_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").touch()
    empty = tree(tmp_path / "em\npty", "a.txt", "b.raw")
    for root, reason in (
        (tmp_path / "typo", "does not exist"),
        (tmp_path / "archive.zip", "is a file"),
        (empty, "2 other files"),
    ):
        with pytest.raises(UserError) as raised:
            list_image_folder(root)
        message = str(raised.value)
        assert message.startswith("data.root=")
        assert reason in message
        assert "\n" not in message
    assert ".jpeg" in message, "the extensions that are taken"


def test_files_that_are_left_out_and_the_classes_that_are_lost_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, "daisy/a.png", "rose/a.png", "rose/b.raw", "tulip/a.raw", "tulip/deep/b.RAW", "notes.txt")
    assert list_image_folder(root).class_names == ("daisy", "rose")
    assert caplog.messages == [
        f"data.root={root}: left out 4 files by their extension (.raw 3, .txt 1); no pictures remain in tulip, tulip/deep"
    ]
    caplog.clear()
    list_image_folder(tree(tmp_path / "pictures", "rose/a.png"))
    assert not caplog.messages
    assert _left_out(["a.png"], ["b.heic"]).endswith("; pip install pillow-heif to read .heic")


def test_importing_the_data_layer_does_not_import_torch() -> None:
    """Commands check paths before torch is there, within a second."""
    code = (
        "import sys, flowergen.data.cache, flowergen.data.splits; "
        "assert not {'torch', 'torchvision', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Oxford 102 Flowers
def test_flower_names_are_torchvision_s_in_label_order() -> None:
    from torchvision.datasets import Flowers102

    names = [slug(name) for name in Flowers102.classes]
    assert len(set(names)) == 102
    # recorded from a list in the order of imagelabels.mat, not in the alphabetical order of the data set's web page
    assert sha256(" ".join(names).encode()).hexdigest() == "242e0f476894e34c4861592673dcbf124dccbfd67f2efbb5ac99fcee63cd12d0"
    # cat_to_name.json, the list that goes round with the data set, counts from 1
    known = {1: "pink_primrose", 12: "colts_foot", 21: "fire_lily", 77: "passion_flower", 102: "blackberry_lily"}
    assert {number: names[number - 1] for number in known} == known


def test_a_failed_download_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the three files, their address and folder; sockets wait 30 s meanwhile and as before afterwards."""
    timeouts = []

    def refuse(*_: Any, **__: Any) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise OSError("Network is\nunreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    socket.setdefaulttimeout(7)
    try:
        with pytest.raises(UserError) as raised:
            list_flowers102(tmp_path / "data")
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(None)
    assert set(timeouts) == {30}
    message = str(raised.value)
    for part in (
        "102flowers.tgz",
        "imagelabels.mat",
        "setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ):
        assert part in message
    assert str(tmp_path / "data" / "flowers-102") in message
    assert "Network is unreachable" in message
    assert "\n" not in message

    with pytest.raises(UserError, match=r"102flowers\.tgz"):
        list_flowers102(tmp_path, download=False)


@pytest.mark.real_data
def test_oxford_flowers_are_all_there_with_their_official_split(photographs: Path) -> None:
    """8,189 pictures, 1,020/1,020/6,149; class sizes are those of the data set's own web page."""
    listing = list_flowers102(photographs / "flowers102_64px", download=False)
    assert listing.names == tuple(f"jpg/image_{number:05d}.jpg" for number in range(1, 8190))
    assert Counter(subsets(listing).values()) == {"train": 1020, "val": 1020, "test": 6149}
    sizes = Counter(classes(listing).values())
    assert len(sizes) == 102
    assert sizes.most_common(4) == [("petunia", 258), ("passion_flower", 251), ("wallflower", 196), ("water_lily", 194)]
    assert min(sizes.values()) == 40
    image, _ = listing.read(0)
    np.testing.assert_array_equal(image, Image.open(photographs / "flowers102_64px/flowers-102" / listing.names[0]))


@pytest.mark.real_data
def test_half_an_unpacked_archive_is_not_taken_for_a_whole(photographs: Path, tmp_path: Path) -> None:
    """With the label files in place torchvision would be content with any number of pictures."""
    source = photographs / "flowers102_64px" / "flowers-102"
    (tmp_path / "flowers-102" / "jpg").mkdir(parents=True)
    for name in ("imagelabels.mat", "setid.mat", "jpg/image_00001.jpg", "jpg/image_00002.jpg"):
        (tmp_path / "flowers-102" / name).symlink_to(source / name)
    for download in (False, True):
        with pytest.raises(UserError, match="contains 2 of 8,189 pictures") as raised:
            list_flowers102(tmp_path, download)
        assert "\n" not in str(raised.value)


@pytest.mark.real_data
def test_photographs_in_folders_are_listed_with_their_classes_and_split(photographs: Path) -> None:
    landscapes = list_image_folder(photographs / "landscapes")
    assert landscapes.class_names == ("Forest", "Glacier", "Mountain", "Sea")
    assert set(Counter(landscapes.labels.tolist()).values()) == {500}
    assert set(subsets(landscapes).values()) == {"train", "val", "test"}
    assert len(list_image_folder(photographs / "flowers5_160px").class_names) == 5
    assert set(list_image_folder(photographs / "dogs").labels.tolist()) == {-1}
