"""metrics.csv: the scalars of all loggers, for a spreadsheet or pandas."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.files import replacing


class MetricsCsv(Logger):
    """Writes one row per logging call and one column per metric; missing values are blank.

    Identical runs write identical files, even if one was killed and resumed, where Lightning's CSVLogger deletes the rows of
    the first process. Wall-clock metrics (``perf/``) are therefore left to the other loggers.

    Args:
        path: the file.
        keep_rows: number of rows of an existing file to keep when a run is resumed, as stored in its checkpoint.
    """

    def __init__(self, path: str | Path, keep_rows: int = 0):
        super().__init__()
        self.path = Path(path)
        self._columns = ["epoch", "step"]
        self._rows: list[dict[str, str]] = []
        self._read(keep_rows)
        self._file_is_current = False  # an existing file may contain rows from after the checkpoint
        self._disk = ToleratedWrite("metrics.csv")

    @property
    def name(self) -> str:
        """Empty: the file is in the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty, see ``name``."""
        return ""

    @property
    def num_rows(self) -> int:
        """Rows written so far."""
        return len(self._rows)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyperparameters are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row to the file before returning; if the disk is full, it is written together with a later row.

        Args:
            metrics: values by name, including ``epoch``.
            step: ``optimizer_steps`` of the module.
        """
        metrics = {name: value for name, value in metrics.items() if not name.startswith("perf/")}
        if metrics.keys() <= {"epoch"}:
            return
        row = {"step": str(step)} | {name: repr(value) for name, value in metrics.items()}
        self._rows.append(row)
        new_columns = [name for name in row if name not in self._columns]
        self._columns += new_columns
        with self._disk:
            if new_columns or not self._file_is_current:
                self._rewrite()
                return
            size = self.path.stat().st_size
            try:
                with self.path.open("a", newline="") as file:
                    csv.DictWriter(file, self._columns).writerow(row)
            except OSError:
                self._file_is_current = False
                os.truncate(self.path, size)  # half a row may have been written
                raise

    def flush_pending(self) -> None:
        """Write rows that could not be written before; a checkpoint stores their number.

        Raises:
            OSError: they still cannot be written.
        """
        if self._rows and not self._file_is_current:
            self._rewrite()

    def _read(self, keep_rows: int) -> None:
        if not keep_rows or not self.path.exists():
            return
        with self.path.open(newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        self._rows = rows[:keep_rows]
        for row in self._rows:  # only the columns of the kept rows, in order of appearance
            self._columns += [name for name in row if name not in self._columns]

    def _rewrite(self) -> None:
        self._file_is_current = False  # until rewritten: the file has other columns
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        self._file_is_current = True
