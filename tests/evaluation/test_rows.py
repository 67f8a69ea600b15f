import os
from pathlib import Path

import numpy as np
import pytest

from flowergen.evaluation.rows import Rows

FIELDS = {"features": ((2, 3), "<f4"), "logits": ((0,), "<f4"), "class": ((), "<i8"), "pixels": ((5,), "|u1")}


def some(num: int, first: int = 0) -> dict[str, np.ndarray]:
    """Rows that tell their number."""
    number = np.arange(first, first + num)
    return {
        "features": (number[:, None, None] + np.arange(6).reshape(2, 3) / 10).astype(np.float32),
        "logits": np.zeros((num, 0), np.float32),
        "class": number - 2,
        "pixels": np.tile(number[:, None], (1, 5)).astype(np.uint8),
    }


def check(rows: Rows, num: int) -> None:
    assert rows.num == num
    for name, expected in some(num).items():
        found = rows.array(name)
        assert found.dtype == np.dtype(FIELDS[name][1])
        np.testing.assert_array_equal(found, expected)


def test_what_was_appended_is_read_back_by_another_object(tmp_path: Path) -> None:
    """Several fields of several kinds, one of no width and one of scalars, in several parts."""
    rows = Rows(tmp_path / "a" / "b", FIELDS)
    check(rows, 0)
    rows.append(**some(3))
    check(rows, 3)
    rows.append(**some(4, first=3))
    check(rows, 7)
    check(Rows(tmp_path / "a" / "b", FIELDS), 7)


def test_values_are_stored_in_the_type_of_the_field(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"x": ((2,), "<f4")})
    rows.append(x=np.arange(8, dtype=np.float64).reshape(2, 4)[:, ::2])  # neither contiguous nor float32
    np.testing.assert_array_equal(rows.array("x"), np.array([[0, 2], [4, 6]], np.float32))


def test_arrays_are_memory_maps_that_cannot_be_written(tmp_path: Path) -> None:
    rows = Rows(tmp_path, FIELDS)
    rows.append(**some(3))
    assert isinstance(rows.array("features"), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows.array("features")[0] = 1


def test_rows_of_another_shape_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="features"):
        Rows(tmp_path, FIELDS).append(**some(3) | {"features": np.zeros((3, 6), np.float32)})


@pytest.mark.parametrize("left", ["a part of a row", "rows of one field"])
def test_what_a_killed_process_has_left_is_cut_by_the_next_append(left: str, tmp_path: Path) -> None:
    Rows(tmp_path, FIELDS).append(**some(3))
    with (tmp_path / "features.rows").open("ab") as file:  # the first field that is written
        file.write(b"\x01" * (7 if left == "a part of a row" else 2 * 24))
    rows = Rows(tmp_path, FIELDS)
    check(rows, 3)
    assert (tmp_path / "features.rows").stat().st_size > 3 * 24, "opening cuts nothing"
    rows.append(**some(2, first=3))
    check(rows, 5)
    assert (tmp_path / "features.rows").stat().st_size == 5 * 24
    check(Rows(tmp_path, FIELDS), 5)


def test_the_shortest_field_counts_and_a_lost_file_is_no_rows(tmp_path: Path) -> None:
    """Which of the files is shorter plays no part."""
    Rows(tmp_path, FIELDS).append(**some(4))
    os.truncate(tmp_path / "pixels.rows", 2 * 5 + 3)
    rows = Rows(tmp_path, FIELDS)
    check(rows, 2)
    rows.append(**some(1, first=2))
    check(Rows(tmp_path, FIELDS), 3)
    (tmp_path / "class.rows").unlink()
    check(Rows(tmp_path, FIELDS), 0)


def test_opening_writes_nothing_and_works_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    Rows(tmp_path / "missing", FIELDS)
    assert not (tmp_path / "missing").exists()
    Rows(tmp_path / "full", FIELDS).append(**some(3))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "full").iterdir()}
    for path in (*before, tmp_path / "full"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        check(Rows(tmp_path / "full", FIELDS), 3)
    finally:
        (tmp_path / "full").chmod(0o700)
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "full").iterdir()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here, which stands for a full disk")
def test_a_full_disk_leaves_the_rows_before_and_the_same_object_goes_on_when_there_is_room(tmp_path: Path) -> None:
    rows = Rows(tmp_path, FIELDS)
    rows.append(**some(3))
    real = tmp_path / "pixels.rows"  # the last: the fields before it are written already
    real.rename(tmp_path / "aside")
    real.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        rows.append(**some(2, first=9))
    real.unlink()
    (tmp_path / "aside").rename(real)
    check(rows, 3)
    check(Rows(tmp_path, FIELDS), 3)
    rows.append(**some(2, first=3))
    check(rows, 5)
    check(Rows(tmp_path, FIELDS), 5)
