"""What users call a class."""

import pytest

from flowergen.data.class_names import class_label, class_labels
from flowergen.errors import UserError

NAMES = ["C", "C#", "C++", "7", "colt's foot", "black-eyed susan, wild"]


@pytest.mark.parametrize("label", range(len(NAMES)))
def test_an_exact_name_wins(label: int) -> None:
    assert class_label(NAMES[label], NAMES) == label


def test_slugs_and_numbers() -> None:
    assert class_label("COLTS_FOOT", NAMES) == 4
    assert class_label("Black eyed Susan wild", NAMES) == 5
    assert class_label(2, NAMES) == class_label("2", NAMES) == 2
    assert class_label(3, ["3", "2", "1", "0"]) == 3, "a label, whatever the classes are called"
    assert class_label("7", [*NAMES, "x", "y"]) == 3, "the class of that name, not the seventh"


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "c": r"ambiguous.*0 \(C\) or 1 \(C#\) or 2 \(C\+\+\)",
        "colt foot": "did you mean colt's foot",
        "6": "there is no class 6: there are 6, 0 to 5",
        "+": "there is no class",
        "-1": "there is no class",
    }.items(),
)
def test_what_fits_no_single_class_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        class_label(name, NAMES)


def test_lists_as_typed() -> None:
    assert class_labels("all", NAMES) == class_labels("[all]", NAMES) == list(range(6))
    assert class_labels('[ "C++", 7,colts_foot ,0]', NAMES) == [2, 3, 4, 0]
    assert class_labels('["black-eyed susan, wild"]', NAMES) == [5]
    assert class_labels("[7,\n0]", NAMES) == [3, 0]
    with pytest.raises(UserError, match="cannot be read"):
        class_labels("x" * 200_000, NAMES)
    for empty in ("[]", "", "[ , ]"):
        with pytest.raises(UserError, match="classes= is empty"):
            class_labels(empty, NAMES)
