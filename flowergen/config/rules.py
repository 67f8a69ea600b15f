"""Rules on the values of a config, and types that several schemas share. Imports nothing heavy."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Rule:
    """A condition on a value and what is wrong otherwise, which may depend on the value."""

    is_valid: Callable[[Any], bool]
    words: str | Callable[[Any], str]

    def problem(self, value: Any) -> str:
        """Describe what is wrong with a value; empty if it is valid."""
        if self.is_valid(value):
            return ""
        return self.words if isinstance(self.words, str) else self.words(value)


def at_least(low: float) -> Rule:
    """Require value >= low."""
    return Rule(lambda value: value >= low, f"must be at least {low}")


def above(low: float) -> Rule:
    """Require value > low."""
    return Rule(lambda value: value > low, f"must be above {low}")


def between(low: float, high: float) -> Rule:
    """Require low <= value <= high."""
    return Rule(lambda value: low <= value <= high, f"must be from {low} to {high}")


def all_between(low: int, high: int) -> Rule:
    """Require a list of at least one number: low <= number <= high."""
    return Rule(
        lambda numbers: bool(numbers) and low <= min(numbers) <= max(numbers) <= high,
        f"must be a list of numbers from {low} to {high}",
    )


def sides_between(low: int, high: int) -> Rule:
    """Require the side of a square, or height and width, in px: low <= side <= high."""

    def is_valid(size: Any) -> bool:
        sides = size if isinstance(size, list) else [size, size]
        return len(sides) == 2 and all(type(side) is int and low <= side <= high for side in sides)

    return Rule(is_valid, f"must be a whole number from {low} to {high}, or [height,width] of such")


def folder(hint: str = "") -> Rule:
    """Require an existing folder; ``hint`` tells what to do if it is missing."""

    def words(path: str) -> str:
        if not path:
            return "must be a folder"
        return f"is {'not a folder' if os.path.exists(path) else 'not an existing folder'}" + (f": {hint}" if hint else "")

    return Rule(os.path.isdir, words)  # unlike Path.is_dir, False for a name that the file system rejects


NON_EMPTY = Rule(lambda value: len(value) > 0, "must not be empty")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
EXISTING_FOLDER = folder()
EXISTING_PATH = Rule(os.path.exists, "does not exist")
# kinds of values that are quoted for Hydra's grammar
PATH = "a path"  # and made absolute
TEXT = "text"

Natural = Annotated[int, between(1, 10**9)]
Count = Annotated[int, at_least(0)]
Seed = Annotated[int, between(0, 2**63 - 1)]
NonNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, above(0)]
Name = Annotated[str, NON_EMPTY]
ImageChannels = Literal[1, 3]
SamplerName = Literal["dpmpp_2m", "ddim", "ddpm", "euler", "heun"]
Steps = Annotated[int, between(1, 10_000)]
Guidance = Annotated[float, between(0, 1000)]
Interval = Annotated[
    list[float],
    Rule(lambda ends: len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1, "must be two increasing numbers from 0 to 1"),
]
Eta = Annotated[float, between(0, 1)]
Batches = Annotated[int | float, at_least(0)]
StepsOrShare = Annotated[
    int | float,
    Rule(
        lambda value: value >= 0 and (isinstance(value, int) or value < 1),
        "must be a whole number of steps, or a share of the run's steps, below 1",
    ),
]
Extractor = Annotated[
    str,
    Rule(lambda name: name != "classifier", "no longer exists: use extractor=efficientnet"),
    Rule(
        lambda name: (
            name in ("auto", "inception", "efficientnet")
            or name.startswith("torchvision:")
            or os.path.isfile(os.path.expanduser(name))
        ),
        "must be auto, inception, efficientnet, torchvision:NAME such as torchvision:resnet50, or a TorchScript or .pt2 file "
        "that exists",
    ),
]
