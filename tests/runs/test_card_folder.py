"""The folder of a metric card is found again by the same command, and never shared by two."""

from pathlib import Path

import pytest

from flowergen.errors import UserError
from flowergen.runs.card_folder import IDENTITY_FILE, card_folder, refuse_other_content

HERS = {"protocol": {"extractor": "inception", "seed": None}, "subject": {"what": "rosé"}, "lpips": False}


def left_by(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("half of it")
    return folder


def test_a_folder_is_made_and_found_again_by_the_same_identity(tmp_path: Path) -> None:
    """Also with a card in it; keys in another order are the same identity. Where none is given it is the default."""
    default, given = tmp_path / "a" / "default", tmp_path / "b" / "given"
    for out, folder in ((None, default), (str(given), given)):
        assert card_folder(out, default, HERS) == folder
        (folder / "card.json").write_text("{}")
        before = (folder / IDENTITY_FILE).read_bytes()
        assert card_folder(out, default, dict(reversed(HERS.items()))) == folder
        refuse_other_content(str(folder))
        assert (folder / IDENTITY_FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "names", [(), (".lock",), (f"{IDENTITY_FILE}.partial",), (".lock", f"{IDENTITY_FILE}.partial")], ids=str
)
def test_what_a_killed_process_has_left_of_the_identity_is_no_content(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = left_by(tmp_path / "out", *names)
    refuse_other_content(str(folder))
    assert card_folder(str(folder), tmp_path, HERS) == folder
    assert card_folder(str(folder), tmp_path, HERS) == folder


@pytest.mark.parametrize("names", [("card.json",), ("notes.txt", ".lock"), ("work",), (".hidden",)], ids=str)
def test_a_folder_with_other_files_is_refused_and_left_as_it_was(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = left_by(tmp_path / "out", *names)
    with pytest.raises(UserError, match="out contains other files, and nothing is overwritten: give a new folder with out="):
        refuse_other_content(str(folder))
    with pytest.raises(UserError, match="give a new folder with out="):
        card_folder(str(folder), tmp_path, HERS)
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(names, "half of it")


@pytest.mark.parametrize(
    "change", [{"protocol": {"extractor": "inception", "seed": 1}}, {"lpips": True}, {"subject": {}}], ids=str
)
def test_the_folder_of_another_identity_is_refused_when_it_is_known(change: dict[str, object], tmp_path: Path) -> None:
    """Not before: it is an evaluation's, and only its identity says whose. A card of another model, or without LPIPS."""
    card_folder(None, tmp_path / "out", HERS)
    before = (tmp_path / "out" / IDENTITY_FILE).read_bytes()
    refuse_other_content(str(tmp_path / "out"))
    with pytest.raises(UserError, match="contains other files"):
        card_folder(None, tmp_path / "out", HERS | change)
    assert (tmp_path / "out" / IDENTITY_FILE).read_bytes() == before


def test_an_identity_that_is_no_text_is_somebody_elses(tmp_path: Path) -> None:
    folder = left_by(tmp_path / "out")
    (folder / IDENTITY_FILE).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="contains other files"):
        card_folder(str(folder), tmp_path, HERS)


def test_a_folder_that_is_not_there_is_nobodys(tmp_path: Path) -> None:
    refuse_other_content(str(tmp_path / "none" / "such"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_folder_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^out=.*file cannot be read \(Not a directory\): give another folder"):
        refuse_other_content(str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be created"):
        card_folder(str(tmp_path / "file"), tmp_path, HERS)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowergen.runs.card_folder.write_atomically", full)
    with pytest.raises(UserError, match=r"cannot be written to \(No space left on device\): give out=DIR elsewhere"):
        card_folder(str(tmp_path / "out"), tmp_path, HERS)
