"""Validation of values sent by a browser; they are untrusted."""

import math
from collections.abc import Sequence
from typing import Any

from flowergen.errors import UserError


def real(name: str, value: Any, low: float, high: float) -> float:
    """Return a number.

    Raises:
        UserError: it is not a number, or lies outside of [low, high].

    >>> real("Strength", 1, 0, 1)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"{name} must be a number from {low:,g} to {high:,g}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number.

    Raises:
        UserError: it is not a whole number, or lies outside of [low, high].

    >>> whole("Steps", 20.0, 1, 100)
    20
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low:,} to {high:,}")
    return int(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the choices.

    Raises:
        UserError: the value is none of them.
    """
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}")
    return value


def labels(value: Any, class_names: Sequence[str]) -> list[int]:
    """Return the chosen classes; empty if none is chosen.

    Raises:
        UserError: the model has no such class.
    """
    return [whole("The number of a class", label, 0, len(class_names) - 1) for label in value or []]
