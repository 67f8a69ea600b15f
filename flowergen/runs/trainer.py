"""Lightning's Trainer with our loggers and callbacks, its device and precision."""

import os
from typing import Any

import hydra
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flowergen.callbacks.budget import Budget
from flowergen.callbacks.budget_plan import seconds_spent
from flowergen.callbacks.compiled_steps import CompiledSteps
from flowergen.callbacks.stop_signals import StopSignals
from flowergen.config.overrides import flat
from flowergen.duration import seconds_of
from flowergen.errors import UserError, one_line
from flowergen.lightning_internals import allow_unused_parameters
from flowergen.runs.build import accepted_arguments, instantiate, manual_optimization_arguments
from flowergen.runs.loading import epochs_done
from flowergen.runs.run_folder import RunFolder, is_first_process

MAX_EPOCHS = 10**6  # if a budget ends training
TRACKERS = "flowergen.callbacks.trackers."
# key prefixes that do not affect the result
NO_HYPERPARAMETERS = (
    "hydra", "paths", "callbacks", "logger", "name", "resume", "sweep", "data.root", "data.cache_dir", "model.weights_dir",
)  # fmt: skip


def refuse_missing_gpu(trainer: dict[str, Any]) -> None:
    """Refuse a config that needs a GPU on a machine without one; ``train`` does so before data are downloaded and decoded.

    Raises:
        UserError: PyTorch finds no GPU, or ``trainer.compile=cuda_graphs`` is used without one.
    """
    accelerator = trainer["accelerator"]
    if accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator}: PyTorch finds no GPU (`python -m flowergen.doctor` says why): "
            "use trainer.accelerator=cpu"
        )
    if trainer["compile"] == "cuda_graphs" and resolve_device(trainer) == "cpu":
        raise UserError(
            f"trainer.compile=cuda_graphs needs a CUDA device, and trainer.accelerator={accelerator} uses none: "
            "use trainer.compile=true"
        )


def resolve_device(trainer: dict[str, Any]) -> str:
    """Return the device on which this process encodes pictures before the Trainer exists: its GPU, or ``cpu``."""
    if trainer["accelerator"] not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "cpu"
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return f"cuda:{trainer['devices'][rank] if isinstance(trainer['devices'], list) else rank}"


def resolve_precision(precision: str, accelerator: str) -> str:
    """Resolve ``auto`` to bf16 on GPUs that support it, fp16 on older ones, float32 on anything else.

    CPUs use float32: without AVX512-BF16 or AMX, bf16 is much slower.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true"


def build_trainer(
    config: dict[str, Any], run: RunFolder, resumed_from: dict[str, Any] | None, started: float | None = None
) -> Trainer:
    """Build Lightning's Trainer with our loggers and callbacks, all of which write to the run folder.

    Args:
        config: the whole config.
        run: the run folder.
        resumed_from: the checkpoint that training resumes from, if any.
        started: start of the command by ``time.monotonic``; None for now.

    Raises:
        UserError: the hardware is missing, or an argument is rejected, by Lightning or because CUDA graphs are for one GPU.
    """
    refuse_missing_gpu(config["trainer"])
    own_keys = ("channels_last", "num_threads", "on_nonfinite", "budget", "compile")
    settings = {key: value for key, value in config["trainer"].items() if key not in own_keys}
    if isinstance(settings["limit_train_batches"], int):  # Lightning counts the parts of our batches
        settings["limit_train_batches"] *= settings["accumulate_grad_batches"]
    manual = bool(accepted_arguments(config["model"], **manual_optimization_arguments(config)))
    if manual:
        settings |= {"accumulate_grad_batches": 1, "gradient_clip_val": None}
        settings.pop("gradient_clip_algorithm", None)
    settings["precision"] = resolve_precision(settings["precision"], settings["accelerator"])
    callbacks = [*_build_callbacks(config, run), StopSignals()]
    cuda_graphs = config["trainer"]["compile"] == "cuda_graphs"
    if config["trainer"]["budget"]:
        slow_steps = 2 if cuda_graphs else 1  # the second step records the graphs
        budget = Budget(seconds_of(config["trainer"]["budget"]), started, slow_steps=slow_steps)
        callbacks.insert(0, budget)  # first, so its clock includes the other callbacks
        spent = resumed_from and seconds_spent(resumed_from) >= budget.seconds
        settings["max_epochs"] = epochs_done(resumed_from) if resumed_from and spent else MAX_EPOCHS
    if config["trainer"]["compile"]:
        callbacks.insert(0, CompiledSteps(cuda_graphs))  # before the budget, which times the end of the run uncompiled
    try:
        trainer: Trainer = instantiate(
            settings,
            "trainer",
            Trainer,
            callbacks=callbacks,
            logger=_build_loggers(config, run, resumed_from),
            default_root_dir=str(run.path),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # Lightning's always shuffles, even for validation
        )
    except (hydra.errors.InstantiationException, MisconfigurationException) as error:
        cause = error.__cause__ or error
        raise UserError(f"trainer: {one_line(cause)}") from error
    if cuda_graphs and trainer.world_size > 1:  # pytorch/pytorch, issues 113809 and 139207
        raise UserError("trainer.compile=cuda_graphs is for one GPU: set trainer.devices=1, or use trainer.compile=true")
    if manual:  # the backward pass of each loss leaves the other network's parameters unused
        allow_unused_parameters(trainer)
    return trainer


def _build_loggers(config: dict[str, Any], run: RunFolder, resumed_from: dict[str, Any] | None) -> list[Logger]:
    stored_state = (resumed_from or {}).get("flowergen", {})
    return [
        instantiate(node, f"logger.{name}", Logger, **_logger_arguments(str(node.get("_target_")), config, run, stored_state))
        for name, node in (config["logger"] or {}).items()
        if node
    ]


def _logger_arguments(target: str, config: dict[str, Any], run: RunFolder, stored_state: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a logger that are not in the config; ``stored_state`` is our part of the resumed checkpoint."""
    if target == "flowergen.callbacks.tensorboard.TensorBoard":
        # otherwise TensorBoard also shows what a killed run logged after its last checkpoint
        purge_step = stored_state["optimizer_steps"] + 1 if stored_state else None
        return {
            "save_dir": str(run.tensorboard), "name": "", "version": "", "default_hp_metric": False, "purge_step": purge_step
        }  # fmt: skip
    if target == "flowergen.callbacks.metrics_csv.MetricsCsv":
        return {"path": str(run.metrics), "keep_rows": stored_state.get("metrics_csv_rows", 0)}
    if not target.startswith(TRACKERS):
        return {}
    name = run.path.name
    arguments = {
        "run_name": f"{run.path.parent.name}_{name}" if name.isdigit() else name,  # a job of a sweep
        "run_id": run.id_for_trackers() if is_first_process() else "",
        "folder": str(run.path),
        "settings": {key: value for key, value in flat(config).items() if not key.startswith(NO_HYPERPARAMETERS)},
        "resumed": bool(stored_state),
    }
    return arguments | ({"output_dir": config["paths"]["output_dir"]} if target == f"{TRACKERS}Mlflow" else {})


def _build_callbacks(config: dict[str, Any], run: RunFolder) -> list[Callback]:
    places: dict[str, dict[str, Any]] = {
        "flowergen.callbacks.images.ImageGrids": {"folder": run.images},
        "flowergen.callbacks.loss_plot.LossPlot": {"folder": run.path},
        "flowergen.callbacks.run_page.RunPage": {"folder": run.path},
        "flowergen.callbacks.checkpoints.Checkpoints": {"folder": run.checkpoints},
        "flowergen.callbacks.evaluation.PeriodicEvaluation": {"folder": run.path},
        "flowergen.callbacks.hparams.FinalMetrics": {"hyperparameters": _hyperparameters(config, run)},
    }
    return [
        instantiate(node, f"callbacks.{name}", Callback, **places.get(str(node.get("_target_")), {}))
        for name, node in (config["callbacks"] or {}).items()
        if node
    ]


def _hyperparameters(config: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """Return the values for the HPARAMS tab: model, data, seed and typed or swept values, except paths and observers."""
    lines = run.read_overrides() if run.overrides.is_file() else []  # only the first process, which logs, writes it
    typed = {key.lstrip("+~"): value for key, _, value in (line.partition("=") for line in lines)}
    values = flat(config)
    named = {key: config[key]["_target_"].rpartition(".")[2] for key in ("model", "data")}
    found = {**named, "seed": config["seed"]}
    for key, text in typed.items():
        if not key.startswith(NO_HYPERPARAMETERS) and key not in named:
            value = values.get(key, text)  # for a config group, as typed
            found[key] = value if isinstance(value, int | float | str) else str(value)
    return found
