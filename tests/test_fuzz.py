"""A few seconds of scripts/fuzz.py, always the same examples; and whether it would notice."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowergen.errors import UserError


def nothing_found(strategy: st.SearchStrategy, fault: Callable[..., str | None], max_examples: int) -> None:
    @settings(
        derandomize=True, deadline=None, max_examples=max_examples, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def every_example(example: object) -> None:
        assert fault(example) is None

    every_example()


def test_damaged_pictures_decode_or_are_unreadable(tmp_path: Path) -> None:
    nothing_found(*fuzz.target_of("picture", tmp_path), max_examples=500)


def test_a_run_that_was_tampered_with_loads_or_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file outside the scratch folder, no process, no other exception; a bomb of 64 MiB instead of 3 GiB."""
    monkeypatch.setattr(fuzz, "PICKLES", fuzz.hostile_pickles(bomb_mib=64))
    run = fuzz.make_run(tmp_path, "vae")
    fault = lambda example: fuzz.examine(lambda: fuzz.check_run(example, tmp_path), UserError, tmp_path)  # noqa: E731
    nothing_found(fuzz.hostile_runs([run]), fault, max_examples=60)


def test_odd_command_lines_are_prepared_or_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing_found(*fuzz.target_of("overrides", tmp_path), max_examples=40)


def endless() -> None:
    while True:
        pass


def refuse(message: str) -> None:
    raise UserError(message)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (lambda: os.system("true"), "os.system"),
        (lambda: subprocess.run(["true"]), "subprocess.Popen"),
        (lambda: Path("../outside").touch(), "open"),
        (lambda: Path("../outside").mkdir(), "os.mkdir"),
        (endless, "hang"),
        (lambda: bytearray(b"x") * 2**27, "memory"),
        (lambda: {}["key"], "KeyError"),
        (lambda: refuse("x" * 5000 + "y"), None),  # one_line shortens it
        (lambda: refuse("a\x1b[31m\nb"), None),
        (lambda: Path("inside").touch(), None),
    ],
)
def test_the_fuzzer_notices(
    harm: Callable[[], object], kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes, files elsewhere, hangs, memory and other exceptions; and none of them comes about."""
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(fuzz, "MAX_MEMORY", 2**25)  # writing four times as much takes less than the time
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    wrong = fuzz.examine(harm, UserError, tmp_path / "here")
    assert wrong is None if kind is None else (wrong or "").startswith(kind)
    assert not (tmp_path / "outside").exists()
