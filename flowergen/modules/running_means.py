"""Means over batches that survive a kill."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather_object, all_reduce, get_rank, get_world_size, is_available, is_initialized


def _distributed() -> bool:
    return is_available() and is_initialized()


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def batch_sums(values: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Sums over the pictures of a batch, as few operations as there are values: on a GPU the host's time is what they take.

    Args:
        values: by name, each (N,), or a scalar that holds for each of the batch's N pictures.

    Returns:
        (K,) float64 on the device, in the order of the values; and N.
    """
    num = max(value.numel() for value in values.values())
    sums = [value.detach().sum(dtype=_widest(value.device)) for value in values.values()]
    repeats = (num // value.numel() for value in values.values())
    return torch.stack([total if times == 1 else total * times for total, times in zip(sums, repeats, strict=True)]), num


def _in_order(wanted: list[str], names: list[str], sums: Tensor, device: torch.device) -> Tensor:
    """The (K,) sums of these names as (L,) of those that are wanted; 0 for what is not there."""
    sums = sums.to(device, _widest(device))  # a checkpoint is loaded before its model is on the device
    if wanted == names:
        return sums
    known, zero = dict(zip(names, sums, strict=True)), torch.zeros((), dtype=_widest(device), device=device)
    return torch.stack([known.get(name, zero) for name in wanted])


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
        self._names: list[str] = []
        self._sums = torch.empty(0)  # (K,)
        self._count = 0

    def update(self, values: dict[str, Tensor]) -> None:
        """Add a batch.

        Args:
            values: see ``batch_sums``.
        """
        self.add(list(values), *batch_sums(values))

    def add(self, names: list[str], sums: Tensor, num: int) -> None:
        """Add a batch.

        Args:
            names: of K values.
            sums: (K,) see ``batch_sums``.
            num: N.
        """
        wanted = list(dict.fromkeys([*self._names, *names]))
        before, now = (_in_order(wanted, *batch, sums.device) for batch in ((self._names, self._sums), (names, sums)))
        self._sums = before + now
        self._names, self._count = wanted, self._count + num

    def compute(self) -> dict[str, float]:
        """Means by name, over all devices; empty before the first ``update``. Every process must call it."""
        if not self._names:
            return {}
        totals = torch.cat([self._sums, self._sums.new_tensor([self._count])])
        if _distributed():
            all_reduce(totals)
        *values, count = totals.tolist()
        return {name: value / count for name, value in zip(self._names, values, strict=True)}

    def state_dict(self) -> list[dict[str, Any]]:
        """The sums of every process, plain numbers. Every process must call it."""
        own = {"sums": dict(zip(self._names, self._sums.tolist(), strict=True)), "count": self._count}
        if not _distributed():
            return [own]
        rows: list[Any] = [None] * get_world_size()
        all_gather_object(rows, own)
        return rows

    def load_state_dict(self, rows: list[dict[str, Any]], device: torch.device) -> None:
        """Go on from ``state_dict``; with another number of processes, the first takes the sums of all."""
        rank, world_size = (get_rank(), get_world_size()) if _distributed() else (0, 1)
        own = rows[rank : rank + 1] if len(rows) == world_size else (rows if rank == 0 else [])
        self._names = list(rows[0]["sums"])
        sums = [sum(row["sums"][name] for row in own) for name in self._names]
        self._sums = torch.tensor(sums, dtype=_widest(device), device=device)
        self._count = sum(row["count"] for row in own)
