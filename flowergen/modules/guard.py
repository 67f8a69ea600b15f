"""A guard for adversarial training, which detects that reconstructions deteriorate and can roll back."""

import copy
import math
from typing import Any, Literal

import torch
from torch import nn

MAX_ROLLBACKS = 3


class Guard:
    """Compares each epoch's validation PSNR with the best one since adversarial training began, or the last one before it.

    Adversarial training always costs some PSNR, because misplaced texture does. It costs far more if the discriminator
    overpowers the generator, or if the generator exploits a weakness of the discriminator.

    Args:
        mode: ``warn``, or ``rollback``: also return to the last good epoch, with half the adversarial weight, at most three
            times.
        margin: how far below the best PSNR a good epoch may be, in dB.
    """

    def __init__(self, mode: Literal["warn", "rollback"], margin: float):
        self.mode, self.margin = mode, margin
        self.best_psnr: float | None = None
        self.num_rollbacks = 0
        self.failed = False  # whether the last epoch that was checked failed
        self.psnr_is_nan = False  # in that epoch
        self._good: dict[str, Any] | None = None

    @property
    def factor(self) -> float:
        """The factor that the adversarial weight is multiplied by."""
        return 0.5**self.num_rollbacks

    def check(self, psnr: float, adversarial_started: bool) -> None:
        """Set ``failed`` if this epoch's validation PSNR, in dB, is NaN or has fallen by more than the margin.

        Before adversarial training has begun, no epoch fails.
        """
        best = -math.inf if self.best_psnr is None else self.best_psnr
        self.psnr_is_nan = math.isnan(psnr)
        self.failed = adversarial_started and not psnr >= best - self.margin
        if psnr > best or (not adversarial_started and not math.isnan(psnr)):  # adversarial training is compared with its start
            self.best_psnr = psnr

    def keep(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Keep a good epoch for a rollback. An epoch before adversarial training whose PSNR is NaN is not kept.

        Args:
            module, optimizers: the model, whose weights and buffers are kept, and its optimisers, whose states are kept.
        """
        if self.mode == "rollback" and self.num_rollbacks < MAX_ROLLBACKS and not self.psnr_is_nan:
            self._good = _copied({"module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]})

    def roll_back(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Restore the last epoch that ``keep`` kept, and halve the adversarial weight.

        Returns:
            True if it was restored, which happens only in mode ``rollback`` and at most three times.
        """
        if self.mode != "rollback" or self._good is None or self.num_rollbacks == MAX_ROLLBACKS:
            return False
        good = _copied(self._good)  # load_state_dict of an optimiser keeps the tensors it is given
        module.load_state_dict(good["module"])
        for optimizer, state in zip(optimizers, good["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.num_rollbacks += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint."""
        return {"best_psnr": self.best_psnr, "num_rollbacks": self.num_rollbacks, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.best_psnr, self.num_rollbacks = state["best_psnr"], state["num_rollbacks"]
        self._good = state["good"] if self.mode == "rollback" else None


def _copied(state: Any) -> Any:
    """Return a deep copy on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return copy.copy(state)
