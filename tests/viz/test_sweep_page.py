import csv
import io
import re
from pathlib import Path

import numpy as np

from flowergen.viz.grids import write_png
from flowergen.viz.sweep_page import Job, csv_table, html_page, swept_keys


def job(number: int, beta: str, kl: float, elbo: float, **more: object) -> Job:
    rows = [{"epoch": 1.0, "val/elbo": elbo - 50}, {"epoch": 2.0, "val/elbo": elbo, "val/loss_kl": kl, "val/active_units": 7.0}]
    return Job(str(number), "finished", overrides={"model.beta": beta, "seed": "0"}, epochs=rows, **more)  # type: ignore[arg-type]


def test_the_table_has_what_differs_and_the_last_epoch() -> None:
    failed = Job("2", "failed", "UserError: no <GPU>", {"model.beta": "9", "seed": "0"})
    jobs = [job(0, "0.5", 90, 700), job(1, "2", 60, 720), failed]
    assert swept_keys(jobs) == ["model.beta"]
    rows = list(csv.DictReader(io.StringIO(csv_table(jobs))))
    assert [row["model.beta"] for row in rows] == ["0.5", "2", "9"]
    assert [row["val/elbo"] for row in rows] == ["700", "720", ""]
    jobs[0].epochs[-1] = {"epoch": 2.0, "val/active_units": 7.0, "val/elbo": 700.0}
    assert csv_table(jobs).splitlines()[0].startswith("job,status,model.beta,val/elbo,")
    assert rows[2]["reason"] == "UserError: no <GPU>"


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """Nothing is fetched; pictures and curves are inside; text is escaped; the best run is marked."""
    write_png(tmp_path / "generated_epoch_2.png", np.zeros((4, 4, 3), dtype=np.uint8))
    failed = Job("2", "failed", "UserError: no <GPU>", {"model.beta": "9", "seed": "0"})
    jobs = [job(0, "0.5", 90, 700), job(1, "2", 60, 720, pictures={"generated": tmp_path / "generated_epoch_2.png"}), failed]
    page = html_page(jobs, "a & b", tmp_path)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/svg+xml;base64,") == 4
    assert page.count("data:image/jpeg;base64,") == 1
    assert "no &lt;GPU&gt;" in page
    assert "a &amp; b" in page
    assert page.count('class="best"') == 1
    assert page.index('class="best"') < page.index("<td>1</td>")


def test_damaged_pictures_and_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "generated_epoch_2.png").write_text("no picture")
    jobs = [job(0, "0.5", 90, float("nan")), job(1, "2", 60, 720, pictures={"generated": tmp_path / "generated_epoch_2.png"})]
    page = html_page(jobs, "sweep", Path())
    assert "data:image/jpeg" not in page
    assert page.index('class="best"') < page.index("<td>1</td>"), "NaN is not the best"
    assert page.count('class="best"') == 1


def test_a_sweep_without_numbers_yet_has_a_page_too() -> None:
    assert "running, or killed" in html_page([Job("0", "running, or killed", "last wrote 3 s ago")], "sweep", Path())


def test_training_set_metrics_stay_labelled_as_such() -> None:
    runs = [Job(str(b), "finished", overrides={"model.beta": str(b)},
                epochs=[{"epoch": 1.0, "trainset/elbo": 5.0 + b, "trainset/loss_kl": 2.0}]) for b in (0, 1)]  # fmt: skip
    page = html_page(runs, "sweep", Path())
    assert "<th>trainset/elbo</th>" in page
    assert "val/" not in page
    assert page.count("data:image/svg+xml;base64,") == 3, "rate-distortion, ELBO against beta (0 among them), over epochs"
