"""What the callbacks of a training share."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RunState:
    """What the callbacks of a training share with each other and with ``flowergen.train``, as ``run_state`` of the model.

    Attributes:
        received: the signal to stop that this process has received, 0 for none.
        agreed: the signal that ends training, the same in all processes, 0 for none.
        copies: further names for the checkpoint after this epoch, each with a function to call if it cannot be written.
        is_behind: whether the last checkpoint could not be written.
        may_draw: whether pictures and evaluations may be made after this epoch; those after the last one are made in any case.
        budget_ends: when the budget is used up, by ``time.monotonic``; None without one.
    """

    received: int = 0
    agreed: int = 0
    copies: dict[str, Callable[[], None]] = field(default_factory=dict)
    is_behind: bool = False
    may_draw: bool = True
    budget_ends: float | None = None
