"""Arrays that grow by rows on the disk: memory stays small, and a killed process goes on where it was."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


class Rows:
    """A file for each array, appended to.

    Nothing is written before the first ``append``, which cuts off what a killed process has left of a row.

    Args:
        folder: made if need be.
        fields: shape of a row and numpy's code for its values, by name: ``{"features": ((2048,), "<f4")}``.
    """

    def __init__(self, folder: Path, fields: Mapping[str, tuple[Sequence[int], str]]):
        self.folder, self.fields = folder, fields
        self._row_bytes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in fields.items()}
        sizes = {name: self._path(name).stat().st_size if self._path(name).exists() else 0 for name in fields}
        self.num = min(sizes[name] // length for name, length in self._row_bytes.items() if length)
        self._cut = False

    def append(self, **arrays: np.ndarray) -> None:
        """Add rows.

        Args:
            **arrays: (n, *shape) for every field.

        Raises:
            OSError: the disk is full; the rows before stay.
        """
        if not self._cut:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, length in self._row_bytes.items():
                with self._path(name).open("ab") as file:
                    file.truncate(self.num * length)
        self._cut = False  # again, if this fails in mid-way
        for name, (shape, dtype) in self.fields.items():
            values = np.ascontiguousarray(arrays[name], dtype=dtype)
            assert values.shape[1:] == tuple(shape), f"{name}: {values.shape[1:]} is not {tuple(shape)}"
            with self._path(name).open("ab") as file:
                file.write(values.tobytes())
        self._cut = True
        self.num += len(arrays[name])

    def sync(self) -> None:
        """On the disk, or an OSError."""
        for name in self.fields:
            if self._path(name).exists():
                with self._path(name).open("rb") as file:
                    os.fsync(file.fileno())

    def array(self, name: str) -> np.ndarray:
        """(num, *shape), a read-only memory map."""
        shape, dtype = self.fields[name]
        if not self.num or not self._row_bytes[name]:
            return np.zeros((self.num, *shape), dtype)
        return np.memmap(self._path(name), dtype=dtype, mode="r", shape=(self.num, *shape))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"
