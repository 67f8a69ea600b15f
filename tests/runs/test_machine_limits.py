"""Errors that the machine raises while it works."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException

from flowergen.errors import UserError
from flowergen.runs import machine_limits
from flowergen.runs.machine_limits import (
    available_memory,
    limits_of_training,
    out_of_memory_as_user_error,
    total_memory,
    training_advice,
)

HUGE = 2**56


def of_pytorch() -> None:
    torch.empty(HUGE)


def of_numpy() -> None:
    np.empty(HUGE)


def beyond_64_bits() -> None:
    torch.empty(2**40, 2**40)


def of_a_gpu() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def wrapped_by_hydra() -> None:
    try:
        torch.empty(HUGE)
    except RuntimeError as error:
        raise InstantiationException("Error in call to target") from error


@pytest.mark.parametrize("fails", [of_pytorch, of_numpy, beyond_64_bits, of_a_gpu, wrapped_by_hydra])
def test_every_kind_of_it_is_one_line(fails: Any) -> None:
    """Those of PyTorch, numpy and Hydra are the real ones, of sizes that no machine has."""
    with (
        pytest.raises(UserError, match=r"^out of memory \((CPU|GPU \d+), \d+ GB\): take less$") as error,
        out_of_memory_as_user_error(": take less"),
    ):
        fails()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), UserError("a user's"), KeyboardInterrupt(), ValueError("x")]
)
def test_anything_else_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, out_of_memory_as_user_error(": take less"):
        raise error
    assert raised.value is error


def config(
    batch_size: int | str = 64, parts: int = 1, precision: str = "32-true", compile: bool | str = False
) -> dict[str, Any]:
    trainer = {"accumulate_grad_batches": parts, "precision": precision, "compile": compile}
    return {"model": {}, "data": {"batch_size": batch_size}, "trainer": trainer}


def test_the_advice_is_what_would_help() -> None:
    """Options that may be typed as they stand."""
    assert training_advice(config(256), on_gpu=True).startswith(
        " at batches of 256: set data.batch_size=128, or keep it and split it with trainer.accumulate_grad_batches=2, "
        "or use trainer.precision=bf16-mixed;"
    )
    assert "precision" not in training_advice(config(256), on_gpu=False)
    assert "precision" not in training_advice(config(256, precision="bf16-mixed"), on_gpu=True)
    assert " at batches of 256 in 4 parts: set data.batch_size=128, or keep it and split it" in training_advice(
        config(256, parts=4), on_gpu=False
    )
    assert "accumulate_grad_batches=8" in training_advice(config(256, parts=4), on_gpu=False)
    assert "accumulate" not in training_advice(config(27), on_gpu=False)  # which two parts do not divide
    assert "accumulate" not in training_advice(config(256, compile="cuda_graphs"), on_gpu=True)  # which refuses parts
    for smallest in (config(1), config(4, parts=4)):
        assert training_advice(smallest, on_gpu=True).startswith(" at batches of 1: use a smaller data.image_size")


@pytest.mark.parametrize(("compile", "typed"), [(True, "true"), ("cuda_graphs", "cuda_graphs")])
def test_a_compiler_that_fails_is_one_line_where_it_was_asked_for(compile: bool | str, typed: str) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(*args: Any) -> Any:
        raise RuntimeError("no g++")

    layer = torch.nn.Linear(2, 2)
    layer.compile(backend=fails)
    with (
        pytest.raises(UserError, match=rf"trainer\.compile={typed}: the compiler failed .*g\+\+"),
        limits_of_training(config(compile=compile)),
    ):
        layer(torch.ones(1, 2))
    with pytest.raises(BackendCompilerFailed), limits_of_training(config(compile=False)):
        layer(torch.ones(1, 2))


def test_the_memory_of_the_machine_is_known() -> None:
    assert 0 < available_memory() <= total_memory() < 2**50


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not held elsewhere")
def test_a_process_with_little_memory_says_so_in_one_line() -> None:
    """The real allocators, of sizes that the machine has and the process may not take."""
    code = """
import resource, sys, torch
from flowergen.app.command import one_line_errors
from flowergen.runs.machine_limits import out_of_memory_as_user_error
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, now + 2**28))

@out_of_memory_as_user_error(": take less")
def main():
    torch.ones(2**28) + 1

one_line_errors(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: out of memory (CPU")
    assert done.stderr.count("\n") == 1


def test_what_a_container_has_used_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit less what it uses, but for files that the system would drop."""
    for name, text in (
        ("memory.max", "9000000\n"),
        ("memory.current", "5000000\n"),
        ("memory.stat", "anon 1\ninactive_file 2000000\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine_limits, "CONTAINER", tmp_path)
    assert total_memory() == 9_000_000
    assert available_memory() == 6_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 6_000_000
