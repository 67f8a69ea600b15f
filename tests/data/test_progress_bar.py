"""How far something has come, where there is no terminal."""

import re

import pytest

from flowergen.data import progress_bar


def test_items_pass_and_a_line_now_and_then_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that ticks ten seconds a batch; ten pictures were there before, and say nothing of the speed."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(clock))
    items = [[1] * 5, [2] * 5, [3] * 5, [4] * 5]
    assert list(progress_bar.with_progress_bar("counting", iter(items), 30, 10, progress_bar.num_pictures)) == items
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["counting: 25 of 30, about 0:00:10 left"]


def test_a_short_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar.with_progress_bar("counting", range(3), 3)) == [0, 1, 2]
    assert not re.search("counting", capsys.readouterr().err)
