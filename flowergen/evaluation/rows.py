"""Arrays on disk that grow by rows: memory use stays small, and an interrupted process can resume."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flowergen.files import flush


class Rows:
    """Arrays stored in one append-only file each.

    Nothing is written before the first ``append``, which truncates an incomplete row left by a killed process.

    Args:
        folder: created if necessary.
        fields: row shape and NumPy dtype code by name: ``{"features": ((2048,), "<f4")}``.
    """

    def __init__(self, folder: Path, fields: Mapping[str, tuple[Sequence[int], str]]):
        self.folder, self.fields = folder, fields
        self._row_bytes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in fields.items()}
        sizes = {name: self._path(name).stat().st_size if self._path(name).exists() else 0 for name in fields}
        self.num = min(sizes[name] // length for name, length in self._row_bytes.items() if length)
        self._cut = False

    def append(self, **arrays: np.ndarray) -> None:
        """Add rows, (n, *shape) for every field; an OSError, such as that of a full disk, keeps earlier ones."""
        if not self._cut:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, length in self._row_bytes.items():
                with self._path(name).open("ab") as file:
                    file.truncate(self.num * length)
        self._cut = False  # truncate again if this fails midway
        for name, (shape, dtype) in self.fields.items():
            values = np.ascontiguousarray(arrays[name], dtype=dtype)
            assert values.shape[1:] == tuple(shape), f"{name}: {values.shape[1:]} is not {tuple(shape)}"
            with self._path(name).open("ab") as file:
                file.write(values.tobytes())
        self._cut = True
        self.num += len(arrays[name])

    def sync(self) -> None:
        """Flush the files to disk; raises an OSError on failure."""
        for name in self.fields:
            if self._path(name).exists():
                flush(self._path(name))

    def array(self, name: str) -> np.ndarray:
        """Return (num, *shape) as a read-only memory map."""
        shape, dtype = self.fields[name]
        if not self.num or not self._row_bytes[name]:
            return np.zeros((self.num, *shape), dtype)
        return np.memmap(self._path(name), dtype=dtype, mode="r", shape=(self.num, *shape))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"
