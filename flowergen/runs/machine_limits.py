"""Report out-of-memory and compilation errors, which occur only at run time, in one line that says what to change."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowergen.config.check import as_typed
from flowergen.errors import UserError, one_line
from flowergen.torch_internals import is_compiler_error

# RuntimeError messages: PyTorch's CPU allocator on Linux, macOS and Windows, sizes beyond 64 bits, C++, cuBLAS, cuDNN, MPS
OUT_OF_MEMORY = (
    "defaultcpuallocator",
    "can't allocate memory",
    "not enough memory",
    "storage size calculation overflowed",
    "std::bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "out of memory",
)
CONTAINER = Path("/sys/fs/cgroup")  # control groups, version 2


@contextmanager
def out_of_memory_as_user_error(advice: str | Callable[[], str]) -> Iterator[None]:
    """Convert out-of-memory errors to a ``UserError``; a context manager and a decorator.

    Args:
        advice: what to change, or a function that returns it when the error occurs.

    Raises:
        UserError: out of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not any(_is_out_of_memory(cause) for cause in _causes(error)):
            raise
        advice_text = advice if isinstance(advice, str) else advice()
        raise UserError(f"out of memory ({_memory()}){advice_text}") from error


@contextmanager
def limits_of_training(config: dict[str, Any]) -> Iterator[None]:
    """Convert out-of-memory and compiler errors of a training run to one line.

    Args:
        config: the whole config; its batch size is read when the error occurs.

    Raises:
        UserError: says what to change.
    """
    try:
        with out_of_memory_as_user_error(lambda: training_advice(config, _has_gpu())):
            yield
    except UserError:
        raise
    except Exception as error:
        compiler = next((cause for cause in _causes(error) if is_compiler_error(cause)), None)
        if not config["trainer"]["compile"] or compiler is None:
            raise
        typed = as_typed(config["trainer"]["compile"])
        raise UserError(
            f"trainer.compile={typed}: the compiler failed ({one_line(compiler)[:200]}): on a CPU it needs a C++ compiler, "
            "such as g++, and Python's headers; or switch it off with trainer.compile=false"
        ) from error


def training_advice(config: dict[str, Any], on_gpu: bool) -> str:
    """Return advice on reducing the memory of a training run, as the end of a sentence.

    Args:
        config: the whole config.
        on_gpu: True on a GPU, where half precision saves memory.
    """
    data, trainer = config["data"], config["trainer"]
    size, parts = data["batch_size"], trainer["accumulate_grad_batches"]
    resizable = "blocks" in config["model"] and not config["model"].get("pretrained")
    model = "model.latent or model.blocks.channels" if resizable else "the model"
    smaller = f"a smaller data.image_size, or make {model} smaller"
    if size == "auto" or size // parts <= 1:
        return f" at batches of {size if size == 'auto' else size // parts}: use {smaller}"
    options = [f"set data.batch_size={size // 2}"]
    if size % (2 * parts) == 0 and trainer["compile"] != "cuda_graphs":
        options.append(f"keep it and split it with trainer.accumulate_grad_batches={2 * parts}")
    if on_gpu and trainer["precision"] == "32-true":
        options.append("use trainer.precision=bf16-mixed")
    batches = f"{size}" if parts == 1 else f"{size} in {parts} parts"
    return f" at batches of {batches}: {', or '.join(options)}; if that is not enough, use {smaller}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, as Hydra and the compiler wrap exceptions."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_initialized()


def _memory() -> str:
    """Describe the device and its total memory."""
    if _has_gpu():
        import torch

        number = torch.cuda.current_device()
        return f"GPU {number}, {torch.cuda.get_device_properties(number).total_memory / 2**30:.0f} GB"
    return f"CPU, {total_memory() / 2**30:.0f} GB"


def total_memory() -> int:
    """Return the memory of the machine or container in bytes."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limit()])


def available_memory() -> int:
    """Return the memory that a process can still allocate, in bytes."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # macOS
        return total_memory() // 2
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in meminfo.read_text().splitlines())
    }
    return min([1024 * kilobytes["MemAvailable"], *(limit - _container_use() for limit in _container_limit())])


def _container_use() -> int:
    """Return the container's memory use in bytes, without reclaimable file cache."""
    stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    return int((CONTAINER / "memory.current").read_text()) - int(stat.get("inactive_file", 0))


def _container_limit() -> list[int]:
    """Return the container's memory limit in bytes; empty if there is none."""
    limit = CONTAINER / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    return [] if text == "max" else [int(text)]
