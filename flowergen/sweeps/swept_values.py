"""The values of a sweep, as the jobs that contain each of them."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

from hydra.core.override_parser.types import IntervalSweep, Override

from flowergen.config.overrides import parse
from flowergen.errors import UserError

MAX_VALUES = 1000  # per swept key, as each is checked


def sweep_samples(overrides: Sequence[str]) -> list[list[str]]:
    """Return the fewest jobs that contain every swept value, or both ends of an interval, to find invalid ones.

    >>> sweep_samples(["model.beta=1,4", "seed=0"])
    [['model.beta=1', 'seed=0'], ['model.beta=4', 'seed=0']]
    """
    values = [
        [f"{override.get_key_element()}={value}" for value in _swept(override)] if override.is_sweep_override() else [line]
        for override, line in zip(parse(overrides), overrides, strict=True)
    ]
    first = [options[0] for options in values]
    others = [[*first[:i], option, *first[i + 1 :]] for i, options in enumerate(values) for option in options[1:]]
    return [first, *others]


def _swept(override: Override) -> list[Any]:
    if override.is_discrete_sweep():
        values = list(islice(override.sweep_string_iterator(), MAX_VALUES + 1))
        if len(values) > MAX_VALUES:
            raise UserError(f"{override.input_line} has more than {MAX_VALUES:,} values: give fewer")
        if not values:
            raise UserError(f"{override.input_line} contains no value")
        return values
    interval = cast(IntervalSweep, override.value())
    low, high = cast(float, interval.start), cast(float, interval.end)
    if low >= high or (low <= 0 and "log" in interval.tags):
        raise UserError(f"{override.input_line}: the second end of an interval must be higher, and a log interval above 0")
    return [low, high]
