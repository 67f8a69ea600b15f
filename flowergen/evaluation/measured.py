"""Results of an evaluation, before they become a card."""

from dataclasses import dataclass, field

import numpy as np

Results = dict[str, dict[str, list[float]]]  # by metric and by what was measured, one value per repeat


@dataclass
class Pairs:
    """The samples that most resemble copies.

    Attributes:
        space: ``pixels`` or ``features``.
        samples: (n, C, H, W) uint8.
        nearest: (n, C, H, W) uint8, the nearest training picture of each.
        ratio: (n,) d1 / d2.
    """

    space: str
    samples: np.ndarray
    nearest: np.ndarray
    ratio: np.ndarray


@dataclass
class Measured:
    """Results of an evaluation.

    Attributes:
        results: values of every metric.
        pairs: pairs of samples and training pictures, the smallest ratio first.
        notes: notes for the metric card.
        missing: metrics that were not measured, and why.
    """

    results: Results = field(default_factory=dict)
    pairs: list[Pairs] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, metric: str, column: str, value: float) -> None:
        """Add one value of a column of the card."""
        self.results.setdefault(metric, {}).setdefault(column, []).append(float(value))
