"""The report over sweeps, finished, failed, running and empty."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from flowergen import report
from flowergen.errors import UserError
from flowergen.report import read_sweep
from flowergen.viz.sweep_page import swept_keys
from tests.conftest import Command


def job(sweep: Path, number: int, exit_: str, epochs: int = 2) -> Path:
    folder = sweep / str(number)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "overrides.yaml").write_text(yaml.safe_dump([f"model.beta={number}", "seed=1"]))
    (folder / "provenance.json").write_text(json.dumps({"exit": exit_}))
    rows = [f"{e},{e * 9},3.5,\n{e},{e * 9},,{100 * number + e}" for e in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/elbo", *rows]) + "\n")
    return folder


def test_every_job_has_its_state_and_reason(tmp_path: Path) -> None:
    job(tmp_path, 0, "finished")
    job(tmp_path, 2, "UserError: trainer: no GPU is there")
    job(tmp_path, 10, "running, or killed", epochs=1)
    job(tmp_path, 5, "KeyboardInterrupt: ")
    job(tmp_path, 6, "running, or killed")
    job(tmp_path, 7, "finished")
    job(tmp_path, 8, "running, or killed")
    (tmp_path / "8" / "metrics.csv").write_text("epoch,step,val/elbo\n1,9,801\n2,-")
    resumed = yaml.safe_load((tmp_path / "0" / "overrides.yaml").read_text())
    (tmp_path / "0" / "overrides.yaml").write_text(yaml.safe_dump(["paths.data_dir='/a'", *resumed]))
    crashed = tmp_path / "3"
    crashed.mkdir()
    (crashed / "train.log").write_text("2026-01-01 begins\nMemoryError: out of memory\n")
    (tmp_path / "jobs.yaml").write_text(
        yaml.safe_dump([
            {"number": 4, "overrides": ["model.beta=x"], "status": "failed", "exit_code": 2},
            {"number": 6, "overrides": [], "status": "failed", "exit_code": -9},
            {"number": 7, "overrides": [], "status": "failed", "exit_code": 0},
            {"number": 8, "overrides": [], "status": "failed", "exit_code": None},
            "somebody else's",
            {"number": 10, "folder": "10", "overrides": ["model.beta=10"], "status": "pruned", "exit_code": -15},
        ])
    )  # fmt: skip
    jobs = {job.name: job for job in read_sweep(tmp_path)}
    assert list(jobs) == ["0", "2", "3", "4", "5", "6", "7", "8", "10"]
    wanted = "finished failed failed failed interrupted failed failed interrupted pruned"
    assert [job.status for job in jobs.values()] == wanted.split()
    assert "no GPU is there" in jobs["2"].reason
    assert "out of memory" in jobs["3"].reason
    assert "exit status 2" in jobs["4"].reason
    assert "out of memory?" in jobs["6"].reason
    assert "never finite" in jobs["7"].reason
    assert jobs["8"].metrics == {"epoch": 1.0, "val/elbo": 801.0}
    assert swept_keys(list(jobs.values())) == ["model.beta", "seed"]
    assert jobs["4"].overrides == {"model.beta": "x"}
    assert jobs["0"].metrics == {"epoch": 2.0, "val/elbo": 2.0}
    (tmp_path / "jobs.yaml").unlink()
    running = {job.name: job for job in read_sweep(tmp_path)}["10"]
    assert running.status == "running, or killed"
    assert f"resume={tmp_path / '10'}" in running.reason


def test_a_job_leads_to_its_page_and_a_run_has_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the jobs by a relative link, elsewhere by an absolute one."""
    sweep, elsewhere = tmp_path / "a sweep", tmp_path / "elsewhere"
    for number in range(2):
        job(sweep, number, "finished")
    config = {"paths": {}, "model": {}, "data": {"name": "x"}, "trainer": {}}
    (sweep / "1" / "config.yaml").write_text(yaml.safe_dump(config))
    for arguments in ([f"run={sweep / '1'}"], [f"sweep={sweep}"], [f"sweep={sweep}", f"out={elsewhere}"]):
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        report.main()
    assert f"page: {sweep / '1' / 'index.html'}" in capsys.readouterr().out
    page = (sweep / "report.html").read_text()
    assert '<a href="1/index.html">1</a>' in page
    assert 'href="0' not in page
    assert f'<a href="{(sweep / "1" / "index.html").as_uri()}">1</a>' in (elsewhere / "report.html").read_text()
    assert "<th>val/elbo</th>" in page


@pytest.mark.parametrize("arguments", [[], ["run=a", "sweep=b"], ["run=a", "out=b"]])
def test_a_report_is_of_one_thing(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).mkdir()
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(UserError, match=r"give one of run=RUN and sweep=DIR|out= is for sweep="):
        report.main()


def test_a_folder_without_runs_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no run"):
        read_sweep(tmp_path)


@pytest.mark.slow
def test_a_sweep_with_a_failing_job_has_a_page(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    command("train", "-m", *[a for a in tiny_run if "accelerator" not in a], "trainer.max_epochs=1",
            "trainer.accelerator=cpu,gpu", f"hydra.sweep.dir={sweep}")  # fmt: skip
    done = command("report", f"sweep={sweep}")
    assert done.returncode == 0, done.stderr
    page = (sweep / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2, "reconstructions and samples of the job that finished"
    assert "PyTorch finds no GPU" in page
    with (sweep / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert [row["trainer.accelerator"] for row in rows] == ["cpu", "gpu"]
    assert float(rows[0]["val/active_units"]) >= 0
    assert not list(sweep.glob("*.partial"))
    refused = command("report", "sweep=typo")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
