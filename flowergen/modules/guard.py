"""A watch over adversarial training: it notices when reconstructions fall apart, and can go back."""

import copy
import math
from typing import Any, Literal

import torch
from torch import nn

MAX_ROLLBACKS = 3


class Guard:
    """Compares each epoch's validation PSNR with the best one since adversarial training began, or the last one before it.

    Adversarial training always costs some PSNR, as texture in the wrong place does; a discriminator that wins, or a generator
    that has found its blind spot, costs far more.

    Args:
        mode: ``warn``, or ``rollback``: also go back to the last good epoch, with half the adversarial weight, at most three
            times.
        margin: what a good epoch may be below the best, in dB.
    """

    def __init__(self, mode: Literal["warn", "rollback"], margin: float):
        self.mode, self.margin = mode, margin
        self.best_psnr: float | None = None
        self.num_rollbacks = 0
        self.failed = False  # the last epoch that was looked at
        self.blind = False  # its PSNR was not a number
        self._good: dict[str, Any] | None = None

    @property
    def factor(self) -> float:
        """What the adversarial weight is multiplied with."""
        return 0.5**self.num_rollbacks

    def look(self, psnr: float, in_play: bool) -> bool:
        """Whether reconstructions have fallen by more than the margin.

        Args:
            psnr: of this epoch's validation, in dB. One that is not a number has fallen.
            in_play: whether adversarial training has begun; before, nothing counts as fallen.
        """
        best = -math.inf if self.best_psnr is None else self.best_psnr
        self.blind = math.isnan(psnr)
        self.failed = in_play and not psnr >= best - self.margin
        if psnr > best or (not in_play and not math.isnan(psnr)):  # adversarial training is compared with where it began
            self.best_psnr = psnr
        return self.failed

    def keep(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """This epoch is good: it is what a rollback goes back to, unless its PSNR was not a number before adversarial training.

        Args:
            module: all of whose weights and buffers are kept.
            optimizers: whose states are.
        """
        if self.mode == "rollback" and self.num_rollbacks < MAX_ROLLBACKS and not self.blind:
            self._good = _copied({"module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]})

    def roll_back(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Put the last good epoch in place and halve the adversarial weight.

        Args:
            module: as for `keep`.
            optimizers: as for `keep`.

        Returns:
            Whether it has: only in mode ``rollback``, and three times at most.
        """
        if self.mode != "rollback" or self._good is None or self.num_rollbacks == MAX_ROLLBACKS:
            return False
        good = _copied(self._good)  # an optimiser adopts the tensors that it is given
        module.load_state_dict(good["module"])
        for optimizer, state in zip(optimizers, good["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.num_rollbacks += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """What must outlive the process."""
        return {"best_psnr": self.best_psnr, "num_rollbacks": self.num_rollbacks, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.best_psnr, self.num_rollbacks = state["best_psnr"], state["num_rollbacks"]
        self._good = state["good"] if self.mode == "rollback" else None


def _copied(state: Any) -> Any:
    """A copy on the CPU that nothing else shares."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return copy.copy(state)
