"""Signals while training; what they do to whole processes is in test_train.py."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from flowergen.callbacks.stop_signals import StopSignals
from flowergen.errors import Stopped
from flowergen.modules.run_state import RunState

TRAINER: Any = SimpleNamespace(world_size=1)
MODULE: Any = SimpleNamespace(accumulation_steps=2)


@pytest.fixture
def stop_signals() -> Any:
    callback, before = StopSignals(), signal.getsignal(signal.SIGINT)
    MODULE.run_state = RunState()
    callback.on_train_start(TRAINER, MODULE)
    yield callback
    callback.on_train_end(TRAINER, MODULE)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_step_of_several_parts_is_finished_first(stop_signals: StopSignals, capfd: pytest.CaptureFixture[str]) -> None:
    """SIGTERM in the first of two parts: agreed on after the second, and the next step does not begin."""
    os.kill(os.getpid(), signal.SIGTERM)
    stop_signals.on_train_batch_end(TRAINER, MODULE, None, None, 0)
    stop_signals.on_train_batch_start(TRAINER, MODULE, None, 1)
    assert not MODULE.run_state.stop_signal
    stop_signals.on_train_batch_end(TRAINER, MODULE, None, None, 1)
    assert MODULE.run_state.stop_signal == signal.SIGTERM
    with pytest.raises(Stopped) as stopped:
        stop_signals.on_train_batch_start(TRAINER, MODULE, None, 2)
    assert stopped.value.status == 143
    assert capfd.readouterr().err == "\nSIGTERM: training ends after this step\n"


@pytest.mark.parametrize("first", [(), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)])
def test_a_second_ctrl_c_ends_the_process_at_once(
    stop_signals: StopSignals, monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...]
) -> None:
    """And neither the first, nor SIGTERM any number of times, before or after it."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for signum in (*first, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), signum)
    assert not ended
    os.kill(os.getpid(), signal.SIGINT)
    assert ended == [130]
