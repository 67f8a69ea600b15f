"""In which order pictures are seen: samplers that yield the index lists of whole batches."""

from collections.abc import Iterator, Sequence

import numpy as np

from flowergen.randomness import generator


class TrainingOrder:
    """A new permutation every epoch, a function of (seed, epoch) alone, that can start in the middle.

    Every process cuts its own part out of the same global batches, and accumulation cuts that part again, so the pictures
    of an optimiser step do not depend on the number of devices or on ``accumulate``. A last, smaller batch is left out.

    Lightning calls ``set_epoch`` because this is the loader's ``sampler``; it never does so for a ``batch_sampler``.

    Args:
        rows: (n,) indices to permute.
        batch_size: pictures per optimiser step, over all devices.
        seed: of the permutations.
        rank, world_size: which of the processes this is.
        accumulate: number of parts that each process cuts its share into.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch = 0
        self.start = 0  # batches of the epoch that a resumed run has already seen

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; only the epoch that a run resumes in starts late."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume_at(self, epoch: int, start: int) -> None:
        """Go on with batch ``start`` of ``epoch``."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches in a whole epoch, also when this one starts late: Lightning counts on it."""
        return len(self.rows) // self.batch_size * self.accumulate

    def __iter__(self) -> Iterator[Sequence[int]]:
        order = generator(self.seed, self.epoch, "order").permutation(self.rows)
        part = self.batch_size // (self.accumulate * self.world_size)
        for micro_batch in range(self.start, len(self)):
            first = (micro_batch * self.world_size + self.rank) * part
            yield order[first : first + part].tolist()


class SequentialOrder:
    """Every picture once, in order: for validation.

    The global batches are split as evenly as they go over the processes. A last one with fewer pictures than processes
    joins the one before it, so that every process sees the same number of batches and no picture is padded or lost.

    Args:
        rows: (n,) indices.
        batch_size: pictures per batch, over all devices.
        rank, world_size: which of the processes this is.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1):
        bounds = list(range(0, len(rows), batch_size))
        if len(bounds) > 1 and len(rows) - bounds[-1] < world_size:
            bounds.pop()
        self.batches = [part for part in np.split(rows, bounds[1:]) if len(part)]
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for batch in self.batches:
            yield np.array_split(batch, self.world_size)[self.rank].tolist()
