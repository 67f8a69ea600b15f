"""``data.batch_size=auto``: find the largest batch size that fits by running training steps on a throw-away copy."""

import copy
import gc
import logging
import os
import resource
import sys
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import Stopped, UserError
from flowergen.modules.image_model import ImageModel
from flowergen.runs.machine_limits import available_memory
from flowergen.runs.run_folder import RunFolder, is_first_process
from flowergen.runs.trainer import build_trainer, resolve_device

log = logging.getLogger(__name__)

MIN_SIZE, MAX_SIZE = 8, 512
MIN_STEPS = 16  # per epoch
MEMORY_FRACTION = 0.8  # usable fraction of the free memory
STEPS = 2  # the second one runs with the optimiser's moments allocated
STEP_WITH_ALL_LOSSES = 10**6  # optimiser step at which all losses are active


def resolve_batch_size(config: dict[str, Any], run: RunFolder, data: ImageDataModule, module: ImageModel) -> bool:
    """Replace ``auto`` by a number in the config and the data module; return True if it was replaced.

    Args:
        config: the whole config, changed in place.
        run: run folder in which the first process has stored the number it found.
        data: the data module, already set up; changed in place.
        module: the model before training; not modified.

    Raises:
        UserError: another program started the processes, so they cannot agree on a number.
    """
    if config["data"].get("batch_size") != "auto":
        return False
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and int(os.environ.get("SLURM_NTASKS", "1")) == 1
    if is_first_process() and alone:
        found = _find(config, data, module)
    else:  # Lightning starts the other processes after the first has found the number
        found = run.read_config()["data"]["batch_size"]
        if found == "auto":
            raise UserError(
                "data.batch_size=auto does not work when torchrun or SLURM starts several processes: give a number instead"
            )
    config["data"]["batch_size"] = data.batch_size = found
    data.check_sizes()
    return True


def candidates(num_train: int, unit: int) -> list[int]:
    """Return the batch sizes to try, each twice the previous one.

    >>> candidates(3200, unit=1), candidates(64, unit=1), candidates(100_000, unit=12)
    ([8, 16, 32, 64, 128], [4], [12, 24, 48, 96, 192, 384])

    Args:
        num_train: number of training pictures.
        unit: batch sizes are multiples of this number, devices x parts of a step.
    """
    most = min(MAX_SIZE, num_train // MIN_STEPS)
    sizes = [size for size in (unit * 2**power for power in range(MAX_SIZE.bit_length())) if size <= most] or [unit]
    return [size for size in sizes if size >= MIN_SIZE] or sizes[-1:]


def largest_fitting_size(
    sizes: list[int], memory_growth: Callable[[int], int | None], available: int, predicts: bool
) -> tuple[int, str]:
    """Find the largest batch size that fits by trying them in order.

    Args:
        sizes: ascending, each twice the previous one.
        memory_growth: trains with a size and returns the peak memory in bytes, or None if out of memory.
        available: available memory in bytes.
        predicts: stop before the size that would exceed the limit; on a CPU the process would be killed.

    Returns:
        The size, and the reason why it is not larger.

    Raises:
        UserError: even the smallest size does not fit.
    """
    why = "a larger one would leave too few steps in an epoch" if sizes[-1] < MAX_SIZE // 2 + 1 else "the largest that is tried"
    chosen = 0
    for size in sizes:
        taken = memory_growth(size)
        if taken is None or (not predicts and taken > MEMORY_FRACTION * available):
            why = f"{size} would not fit in memory"
            break
        chosen = size
        if predicts and size != sizes[-1] and 2 * taken > MEMORY_FRACTION * available:
            why = f"{2 * size} would take more than {MEMORY_FRACTION:.0%} of the free memory"
            break
    if not chosen:
        raise UserError(
            f"data.batch_size=auto: not even batches of {sizes[0]} fit in memory: use a smaller data.image_size or model"
        )
    return chosen, why


def _find(config: dict[str, Any], data: ImageDataModule, module: ImageModel) -> int:
    trainer = config["trainer"]
    device = torch.device(resolve_device(trainer))
    on_gpu = device.type == "cuda"
    devices = _num_devices(trainer["devices"], on_gpu) * trainer["num_nodes"]
    sizes = candidates(len(data.rows["train"]), devices * trainer["accumulate_grad_batches"])
    log.info(f"data.batch_size=auto: trying {', '.join(map(str, sizes))}")
    available = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    before = torch.cuda.memory_reserved(device) if on_gpu else _peak_rss()

    def memory_growth(size: int) -> int | None:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            _train(config, data, module, size // devices)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            data.trainer = None  # the trainer holds the copied model
            gc.collect()
            torch.cuda.empty_cache()
        return (torch.cuda.max_memory_reserved(device) if on_gpu else _peak_rss()) - before

    found, why = largest_fitting_size(sizes, memory_growth, available, predicts=not on_gpu)
    log.info(f"data.batch_size=auto: {found} ({why}); the learning rate stays as it is, whatever the batch size")
    return found


def _train(config: dict[str, Any], data: ImageDataModule, module: ImageModel, size: int) -> None:
    """Train a few steps on one device, with the run's trainer but without its outputs."""
    devices = config["trainer"]["devices"]
    trial = {
        "devices": devices[:1] if isinstance(devices, list) else 1,
        "num_nodes": 1,
        "strategy": "auto",
        "max_epochs": 1,
        "limit_train_batches": STEPS,
        "limit_val_batches": 0,
        "budget": None,
        "compile": False,
    }
    data.batch_size = size
    copied = copy.deepcopy(module)
    copied.optimizer_steps = STEP_WITH_ALL_LOSSES
    with TemporaryDirectory() as folder:
        alone = config | {"logger": None, "callbacks": None, "trainer": config["trainer"] | trial}
        build_trainer(alone, RunFolder(folder), None).fit(copied, datamodule=data)
    if copied.run_state.received_signal:
        raise Stopped(copied.run_state.received_signal)


def _num_devices(devices: int | str | list[int], on_gpu: bool) -> int:
    if isinstance(devices, list):
        return len(devices)
    if devices in (-1, "-1", "auto"):
        return torch.cuda.device_count() if on_gpu else 1
    return int(devices) if isinstance(devices, int) or devices.isdigit() else len(devices.split(","))


def _peak_rss() -> int:
    """Return the peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
