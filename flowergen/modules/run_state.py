"""State shared by the callbacks of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Drawing(NamedTuple):
    """What a callback draws from the model.

    Attributes:
        every_epochs: interval in epochs, in addition to the last epoch; 0 for never.
        num_samples: number of samples that a budget may time beforehand; 0 for none.
    """

    every_epochs: int
    num_samples: int


@dataclass
class RunState:
    """State that the callbacks of a run share with each other and with ``flowergen.train``; the model's ``run_state``.

    Attributes:
        received_signal: number of the stop signal that this process has received, 0 for none.
        stop_signal: number of the signal that ends training, the same in all processes, 0 for none.
        checkpoint_copies: additional file names for the checkpoint after this epoch, each with a function to call if it cannot
            be written.
        checkpoint_failed: whether the last checkpoint could not be written.
        drawings: by ``state_key`` of the callback that draws, which adds itself before training starts.
        may_draw: whether pictures and evaluations may be computed after this epoch; those of the last one always are.
        budget_ends: time at which the budget is used up, by ``time.monotonic``; None without a budget.
    """

    received_signal: int = 0
    stop_signal: int = 0
    checkpoint_copies: dict[str, Callable[[], None]] = field(default_factory=dict)
    checkpoint_failed: bool = False
    drawings: dict[str, Drawing] = field(default_factory=dict)
    may_draw: bool = True
    budget_ends: float | None = None
