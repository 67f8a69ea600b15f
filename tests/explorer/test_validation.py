"""Values sent by a browser are untrusted."""

import math
from typing import Any

import pytest

from flowergen.errors import UserError
from flowergen.explorer import validation


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, 1e300, -1, 11, [], {}])
def test_neither_numbers_nor_whole_numbers(value: Any) -> None:
    for check in (validation.real, validation.whole):
        with pytest.raises(UserError, match=r"^Steps must be a (whole )?number from 0 to 10$"):
            check("Steps", value, 0, 10)


def test_a_fraction_is_no_whole_number() -> None:
    assert validation.real("Steps", 2.5, 0, 10) == 2.5
    with pytest.raises(UserError, match="whole number"):
        validation.whole("Steps", 2.5, 0, 10)


@pytest.mark.parametrize("value", [[2], [-1], ["rose"], [None]])
def test_classes_that_the_model_does_not_have(value: Any) -> None:
    with pytest.raises(UserError, match="number of a class must be a whole number from 0 to 1"):
        validation.labels(value, ["rose", "tulip"])
    assert validation.labels(None, ["rose", "tulip"]) == validation.labels([], []) == []
    assert validation.labels([1, 0.0], ["rose", "tulip"]) == [1, 0]
