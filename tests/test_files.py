import os
from pathlib import Path

import pytest

from flowergen.files import replacing


@pytest.mark.parametrize("own_name", [False, True])
def test_a_reader_sees_the_old_file_or_the_new_one(own_name: bool, tmp_path: Path) -> None:
    """Also where writing fails; the temporary file is gone in the end."""
    path, partial = tmp_path / "a.txt", tmp_path / "mine.partial" if own_name else None
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path, partial) as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with replacing(path, partial) as file:
        assert file.name == ("mine.partial" if own_name else "a.txt.partial")
        file.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


def test_what_must_last_is_on_the_disk_before_it_replaces_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a.txt", list[str]()
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        seen.append(f"{os.pread(descriptor, 10, 0).decode()} before {path.read_text()}")

    monkeypatch.setattr(os, "fsync", fsync)
    for durably in (False, True):
        with replacing(path, durably=durably) as file:
            file.write_text("first" if not durably else "second")
    assert seen == ["second before first"]
    assert path.read_text() == "second"


def test_a_disk_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="Input"), replacing(tmp_path / "a.txt", durably=True) as file:
        file.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
