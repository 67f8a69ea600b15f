"""Means over batches that survive a kill."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather_object, all_reduce, get_rank, get_world_size, is_available, is_initialized


def _distributed() -> bool:
    return is_available() and is_initialized()


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


class RunningMeans:
    """Means of per-picture values over the batches since the last ``reset``, on all devices together.

    Lightning's own ``on_epoch=True`` means start anew when a run is resumed within an epoch; these are part of the
    checkpoint, a row for each process, so that a resumed run adds up the same numbers in the same order. Sums are kept in
    float64 on the device, so that nothing waits for the GPU before ``compute``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, values: dict[str, Tensor]) -> None:
        """Add a batch.

        Args:
            values: by name, each (N,), or a scalar that holds for each of the batch's N pictures.
        """
        num = max(value.numel() for value in values.values())
        for name, value in values.items():
            total = value.detach().sum(dtype=_widest(value.device)) * (num // value.numel())
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._count += num

    def compute(self) -> dict[str, float]:
        """Means by name, over all devices; empty before the first ``update``. Every process must call it."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        totals = torch.cat([sums, sums.new_tensor([self._count])])
        if _distributed():
            all_reduce(totals)
        *values, count = totals.tolist()
        return {name: value / count for name, value in zip(self._sums, values, strict=True)}

    def state_dict(self) -> list[dict[str, Any]]:
        """The sums of every process, plain numbers. Every process must call it."""
        mine = {"sums": {name: total.item() for name, total in self._sums.items()}, "count": self._count}
        if not _distributed():
            return [mine]
        rows: list[Any] = [None] * get_world_size()
        all_gather_object(rows, mine)
        return rows

    def load_state_dict(self, rows: list[dict[str, Any]], device: torch.device) -> None:
        """Go on from ``state_dict``; with another number of processes, the first takes the sums of all."""
        rank, world_size = (get_rank(), get_world_size()) if _distributed() else (0, 1)
        mine = rows[rank : rank + 1] if len(rows) == world_size else (rows if rank == 0 else [])
        names = rows[0]["sums"]
        self._sums = {
            name: torch.tensor(sum(row["sums"][name] for row in mine), dtype=_widest(device), device=device) for name in names
        }
        self._count = sum(row["count"] for row in mine)
