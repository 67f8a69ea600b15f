"""What was found, before it becomes a card."""

from dataclasses import dataclass, field

import numpy as np

Results = dict[str, dict[str, list[float]]]  # by metric, by what was measured, a value for each repeat


@dataclass
class Pairs:
    """The samples that look most like copies.

    Attributes:
        space: ``pixels`` or ``features``.
        samples: (n, 3, S, S) uint8.
        nearest: (n, 3, S, S) uint8, the training picture that each is nearest to.
        ratio: (n,) d1 / d2.
    """

    space: str
    samples: np.ndarray
    nearest: np.ndarray
    ratio: np.ndarray


@dataclass
class Measured:
    """What was found.

    Attributes:
        results: of every metric.
        pairs: worst first.
        notes: what a reader must know.
        missing: what was not measured, and why.
    """

    results: Results = field(default_factory=dict)
    pairs: list[Pairs] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, metric: str, of: str, value: float) -> None:
        """One more value."""
        self.results.setdefault(metric, {}).setdefault(of, []).append(float(value))
