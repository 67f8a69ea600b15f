"""Collections kept on the device, so that batches are transferred as row numbers only."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowergen.data.batch import Batch, LatentBatch

MEMORY_FRACTION = 1 / 3  # of the GPU's free memory; the rest is for the model, whose activations are not yet allocated
CHUNK_SIZE = 1024  # rows per copy


class RowNumbers(Dataset[Tensor]):
    """Dataset that returns row numbers in place of whole batches."""

    def __getitem__(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64)


def copy_to_device(source: Dataset[Batch] | Dataset[LatentBatch], device: torch.device) -> Batch | LatentBatch:
    """Return a whole collection as one batch on the device; each process has its own copy.

    Args:
        source: returns a batch for a list of rows.
        device: target device.
    """
    num = len(source)  # type: ignore[arg-type]
    first = source[[0]]
    whole = type(first)(*(torch.empty(num, *part.shape[1:], dtype=part.dtype, device=device) for part in first))
    for start in range(0, num, CHUNK_SIZE):
        rows = list(range(start, min(start + CHUNK_SIZE, num)))
        for values, part in zip(whole, source[rows], strict=True):
            values[start : start + len(rows)] = part
    return whole
