import csv
import os
from pathlib import Path

import pytest

from flowergen.callbacks.metrics_csv import MetricsCsv


def write(logger: MetricsCsv, start: int, end: int) -> None:
    for step in range(start, end):
        logger.log_metrics({"epoch": step // 3, "train/loss": step / 7}, step=step)
        if step % 3 == 2:
            logger.log_metrics({"epoch": step // 3, "val/psnr": 20.0 + step}, step=step)


def test_a_resumed_table_is_byte_equal_to_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = MetricsCsv(tmp_path / "whole.csv"), MetricsCsv(tmp_path / "killed.csv")
    write(whole, 0, 9)
    write(killed, 0, 2)
    rows_at_checkpoint = killed.num_rows
    write(killed, 2, 7)  # after the checkpoint: a column that the checkpoint does not know comes up
    with (tmp_path / "killed.csv").open("a") as file:
        file.write("1,7,0.2")  # half a line, as SIGKILL leaves it
    resumed = MetricsCsv(tmp_path / "killed.csv", keep_rows=rows_at_checkpoint)
    write(resumed, 2, 9)
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_disk_that_is_full_when_a_column_comes_up_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file then has fewer columns than the rows to come, which must not be appended to it."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole, spoilt = MetricsCsv(tmp_path / "whole.csv"), MetricsCsv(tmp_path / "spoilt.csv")
    write(whole, 0, 6)
    write(spoilt, 0, 2)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", refuse)
        write(spoilt, 2, 3)  # val/psnr
    write(spoilt, 3, 6)
    assert (tmp_path / "spoilt.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_half_a_row_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may fill up in the middle of one: whoever reads the table finds whole rows, and the next one brings it."""

    def fill_up(writer: csv.DictWriter, row: dict[str, str]) -> None:
        writer.writer.writerow(["1", "2", "3."])
        raise OSError(28, "No space left on device")

    whole, spoilt = MetricsCsv(tmp_path / "whole.csv"), MetricsCsv(tmp_path / "spoilt.csv")
    write(whole, 0, 6)
    write(spoilt, 0, 4)
    before = (tmp_path / "spoilt.csv").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(csv.DictWriter, "writerow", fill_up)
        write(spoilt, 4, 5)
    assert (tmp_path / "spoilt.csv").read_bytes() == before
    write(spoilt, 5, 6)
    assert (tmp_path / "spoilt.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_wall_clock_stays_out(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"perf/images_per_second": 3.0}, step=1)
    assert logger.num_rows == 0
    logger.log_metrics({"epoch": 0, "val/psnr": 0.1, "perf/images_per_second": 3.0}, step=1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,step,val/psnr", "0,1,0.1"]
