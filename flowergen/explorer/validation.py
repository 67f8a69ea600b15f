"""Validation of values sent by a browser, which are untrusted. All functions raise a ``UserError`` if one is invalid."""

from collections.abc import Sequence
from typing import Any

from flowergen.errors import UserError


def real(name: str, value: Any, low: float, high: float) -> float:
    """Return a number in [low, high].

    >>> real("Strength", 1, 0, 1)
    1.0
    """
    if not _within(value, low, high):
        raise UserError(f"{name} must be a number from {low:,g} to {high:,g}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number in [low, high].

    >>> whole("Steps", 20.0, 1, 100)
    20
    """
    if not _within(value, low, high) or value != value // 1:
        raise UserError(f"{name} must be a whole number from {low:,} to {high:,}")
    return int(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the choices."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}")
    return value


def labels(value: Any, class_names: Sequence[str]) -> list[int]:
    """Return the chosen classes; empty if none is chosen."""
    return [whole("The number of a class", label, 0, len(class_names) - 1) for label in value or []]


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
