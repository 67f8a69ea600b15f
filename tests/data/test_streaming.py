"""Pictures decoded when they are asked for: the same ones as from the cache."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.data import streaming
from flowergen.data.batch import Batch
from flowergen.data.cache import cached_images
from flowergen.data.listing import Listing, list_image_folder
from flowergen.data.order import TrainingOrder
from flowergen.data.reading import Fit
from flowergen.data.streaming import PrefetchingLoader, StreamedImages, streamed_images
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape
from tests.data.test_image_datamodule import drawn, write_pictures

SHAPE = PictureShape.of(16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty pictures, the fourth of them broken, and two of them equal."""
    write_pictures(tmp_path / "set", 30, 0)
    (tmp_path / "set" / "3.png").write_bytes(b"\x89PNG")
    (tmp_path / "set" / "9.png").write_bytes((tmp_path / "set" / "8.png").read_bytes())
    return tmp_path / "set"


def streamed(folder: Path, cache_dir: Path, shape: PictureShape = SHAPE, fit: Fit = "crop") -> tuple[Listing, Any]:
    listing = list_image_folder(folder)
    return listing, streamed_images(listing, "toy", shape, cache_dir, "skip", fit)


@pytest.mark.parametrize(("shape", "fit"), [(SHAPE, "crop"), (PictureShape.of([48, 64], 1), "pad")])
def test_all_is_as_from_the_cache(folder: Path, tmp_path: Path, shape: PictureShape, fit: Fit) -> None:
    listing, ours = streamed(folder, tmp_path / "stream", shape, fit)
    theirs = cached_images(listing, "toy", shape, tmp_path / "cache", "skip", fit=fit)
    np.testing.assert_array_equal(np.array(ours.images), theirs.images)
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    assert ours.digests.tolist() == theirs.digests.tolist()
    assert (ours.unreadable, ours.key) == (theirs.unreadable, theirs.key)
    with pytest.raises(UserError) as first:
        streamed_images(listing, "toy", shape, tmp_path / "stream", fit=fit)
    with pytest.raises(UserError) as second:
        cached_images(listing, "toy", shape, tmp_path / "cache", fit=fit)
    assert str(first.value) == str(second.value)


def test_it_is_indexed_as_the_array_is(folder: Path, tmp_path: Path) -> None:
    """By a number, a list, an array, a slice of a slice; and as the array refuses."""
    listing, found = streamed(folder, tmp_path)
    images, array = found.images, cached_images(listing, "toy", SHAPE, tmp_path, "skip").images
    assert (len(images), images.shape, images.dtype) == (len(array), array.shape, array.dtype)
    for index in (5, -1, [4, 4, 0], np.array([28, 2]), slice(3, 9), slice(None, None, -2), np.zeros(0, np.int64)):
        np.testing.assert_array_equal(np.array(images[index]), array[index])
    np.testing.assert_array_equal(np.array(images[4:20][3:5]), array[7:9])
    with pytest.raises(IndexError):
        images[[29]]


def test_a_slice_has_read_nothing_yet(folder: Path, tmp_path: Path) -> None:
    _, found = streamed(folder, tmp_path)
    for path in folder.iterdir():
        path.unlink()
    assert isinstance(found.images[2:], StreamedImages)
    assert len(found.images[2:]) == 27


def test_files_are_read_once_for_the_index_whatever_the_size(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    listing, found = streamed(folder, tmp_path)
    monkeypatch.setattr(streaming, "read_all", None)
    other = streamed_images(listing, "toy", PictureShape.of(8), tmp_path, "skip")
    assert other.digests.tolist() == found.digests.tolist()
    assert other.key != found.key
    (kept,) = (path for path in tmp_path.glob("toy_*") if path.is_dir())
    assert [path.name for path in kept.iterdir()] == ["meta.json"], "no pixels"


def test_a_damaged_index_is_made_again(folder: Path, tmp_path: Path) -> None:
    listing, found = streamed(folder, tmp_path)
    (meta,) = tmp_path.glob("toy_index_*/meta.json")
    fewer = json.dumps(json.loads(meta.read_text()) | {"unreadable": []}).encode()
    for damage in (meta.read_bytes()[:40], b"{}", fewer):
        meta.write_bytes(damage)
        again = streamed_images(listing, "toy", SHAPE, tmp_path, "skip")
        assert again.digests.tolist() == found.digests.tolist()


def test_not_one_picture_decodes(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"none of 1 pictures can be decoded, for example a\.png"):
        streamed(tmp_path / "set", tmp_path / "cache")


def test_a_picture_that_vanishes_or_changes_is_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    listing, found = streamed(folder, tmp_path)
    names = [listing.names[row] for row in found.rows]
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"damaged")
    Image.new("RGB", (20, 20)).save(folder / "2.png")
    for name in ("0.png", "1.png", "2.png"):
        words = f"{name} has changed or vanished since the pictures were listed: run again"
        with pytest.raises(UserError, match=re.escape(words)):
            found.images[[5, names.index(name)]]


def test_a_picture_that_is_not_the_one_of_the_index_is_named(folder: Path, tmp_path: Path) -> None:
    """As when it was replaced before this process listed it, at the same time and with as many bytes."""
    listing, found = streamed(folder, tmp_path)
    digests = found.digests.copy()
    digests[3] = digests[4]
    images = StreamedImages(listing, found.rows, digests, SHAPE, "crop", ThreadPoolExecutor())
    with pytest.raises(UserError, match=rf"^{listing.names[found.rows[3]]} has changed since the run started"):
        images[[3]]


class Numbers:
    """A source whose batches are the rows, and that counts them; some wait until they may, or raise."""

    def __init__(self, fails_at: int = -1):
        self.asked, self.may_go_on, self.fails_at = list[list[int]](), Event(), fails_at

    def __len__(self) -> int:
        return 100

    def __getitem__(self, rows: list[int]) -> Batch:
        self.asked.append(rows)
        if len(self.asked) - 1 == self.fails_at:
            raise UserError("a.png can no longer be read")
        index = torch.tensor(rows)
        return Batch(index, index, index)


def loader(source: Numbers, order: TrainingOrder) -> PrefetchingLoader:
    return PrefetchingLoader(source, sampler=order, batch_size=None)  # type: ignore[arg-type]


def test_the_loader_is_two_batches_ahead_and_gives_all_in_order(monkeypatch: Any) -> None:
    order, source = TrainingOrder(np.arange(100), 10, seed=0), Numbers()
    batches = iter(loader(source, order))
    assert next(batches).index.tolist() == next(iter(order))
    wait_for(lambda: len(source.asked) == 3)
    time.sleep(0.05)
    assert len(source.asked) == 3, "no more than is asked for"
    rest = [batch.index.tolist() for batch in batches]
    assert [source.asked[0], *rest] == list(order)


def wait_for(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_a_loader_that_is_left_early_begins_anew_and_resumes_where_the_loop_was() -> None:
    """What was decoded ahead and not taken is not lost to the run that goes on."""
    order, source = TrainingOrder(np.arange(100), 10, seed=0), Numbers()
    every = list(order)
    ahead = loader(source, order)
    batches = iter(ahead)
    taken = [next(batches).index.tolist() for _ in range(4)]
    batches.close()  # type: ignore[attr-defined]
    order.resume_at(0, len(taken))
    assert [*taken, *(batch.index.tolist() for batch in ahead)] == every
    order.set_epoch(1)
    assert len(list(ahead)) == 10


def test_an_error_in_the_thread_is_the_users_one_line_at_its_batch() -> None:
    batches = iter(loader(Numbers(fails_at=3), TrainingOrder(np.arange(100), 10, seed=0)))
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match=r"^a\.png can no longer be read$"):
        next(batches)


@pytest.mark.parametrize("shape", [{}, {"image_size": [12, 16], "channels": 1, "fit": "pad"}])
def test_a_data_module_that_streams_gives_the_same_batches(shape: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = drawn(tmp_path / "a", decode="stream", **shape), drawn(tmp_path / "b", **shape)
    assert isinstance(ours.test_dataloader(), PrefetchingLoader)
    assert ours.identity == theirs.identity
    assert ours.pixels == theirs.pixels
    for a, b in zip(ours.test_dataloader(), theirs.test_dataloader(), strict=True):
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(ours.validation_images(5), theirs.validation_images(5), rtol=0, atol=0)
