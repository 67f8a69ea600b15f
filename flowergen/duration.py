"""Durations such as 30s, 10min, 1h30min. Imports nothing heavy."""

import re

_DURATION = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)(?:min|m))?(?:([\d.]+)s)?")
_SECONDS = (24 * 3600, 3600, 60, 1)


def seconds_of(text: str) -> float:
    """Convert a duration, numbers with the units d, h, min (or m) and s, larger units first, to seconds.

    >>> seconds_of("1h30min"), seconds_of("0.5h"), seconds_of("90s")
    (5400.0, 1800.0, 90.0)

    Raises:
        ValueError: the text is not of that form, or the duration is zero.
    """
    match = _DURATION.fullmatch(text)
    seconds = (
        sum(float(number) * unit for number, unit in zip(match.groups(), _SECONDS, strict=True) if number) if match else 0.0
    )
    if not seconds:
        raise ValueError(f"{text} is not a duration")
    return seconds


def is_duration(value: object) -> bool:
    """Return True if ``seconds_of`` accepts the value."""
    try:
        return isinstance(value, str) and seconds_of(value) > 0
    except ValueError:
        return False
