"""``python -m flowergen.train``: train a model in a new run folder, or resume a run."""

import errno
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flowergen.app.command import one_line_errors
from flowergen.app.console import closing_summary, essentials, last_good, silence_warnings
from flowergen.app.train_command import changed, prepare_train
from flowergen.config import conf_dir
from flowergen.config.overrides import resolve
from flowergen.duration import seconds_of
from flowergen.errors import Stopped, TrainingEnded, UserError, one_line
from flowergen.files import replacing
from flowergen.runs.machine_limits import limits_of_training
from flowergen.runs.provenance import Provenance
from flowergen.runs.run_folder import RunFolder, find_run, is_first_process
from flowergen.runs.stages import is_inherited, pretrained_folder
from flowergen.sweeps import launcher

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES)


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def run_job(composed: DictConfig) -> None:
    """Execute one run, in the folder that Hydra has created for it."""
    config = resolve(composed)
    run = RunFolder(HydraConfig.get().runtime.output_dir)
    if not is_first_process():  # only the first process logs
        logging.getLogger().setLevel(logging.CRITICAL)
        try:
            train(config, run)
        except TrainingEnded as error:  # possibly of this process only
            sys.exit(f"error in process {os.environ.get('RANK') or os.environ.get('LOCAL_RANK')}: {one_line(error)}")
        except UserError:
            sys.exit(2)
        except Stopped:  # the first process reports it; with a non-zero status here, Lightning would terminate that process
            sys.exit(0)
        return
    try:
        with run.locked():
            if config["resume"] is None:
                run.clear_refused()
                _store(config, run)
            with Provenance(run, config["seed"], config["init"]), limits_of_training(config):
                train(config, run)
    except UserError as error:
        log.error(f"error: {one_line(error)}")
        sys.exit(2)
    except (KeyboardInterrupt, Stopped):
        log.info(f"stopped; resume with: python -m flowergen.train {shlex.quote(f'resume={run.path}')}")
        raise
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NOT_WRITABLE):
            raise
        advice = "make room" if error.errno in DISK_FULL else "make it writable"
        command = shlex.quote(f"resume={run.path}") if run.config.exists() else "the same command"
        log.error(
            f"error: {error.filename or run.path} cannot be written ({error.strerror}): {advice}, then continue with {command}"
        )
        sys.exit(2)


def train(config: dict[str, Any], run: RunFolder) -> None:
    """Build everything, fit, save the weights, and log where the results are."""
    started = time.monotonic()
    import torch

    from flowergen.callbacks.budget_plan import seconds_spent
    from flowergen.callbacks.checkpoints import Checkpoints
    from flowergen.runs.batch_size import resolve_batch_size
    from flowergen.runs.build import build_datamodule, build_module, fetch_weights
    from flowergen.runs.latents import copy_previous_stage, fetch_hub, prepare_latents, store_for_sampling
    from flowergen.runs.loading import epochs_done, load_previous_stage, load_run, read_checkpoint, save_weights, steps_done
    from flowergen.runs.pretrained import start_from_pretrained
    from flowergen.runs.trainer import build_trainer, refuse_missing_gpu, resolve_device
    from flowergen.runs.warm_start import start_from

    silence_warnings()
    if config["trainer"]["num_threads"]:
        torch.set_num_threads(config["trainer"]["num_threads"])
    refuse_missing_gpu(config["trainer"])
    resumed = config["resume"] is not None
    checkpoint_path = _checkpoint_to_resume(config["resume"], run) if resumed else None
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    steps_before = steps_done(checkpoint) if checkpoint else 0
    budget = config["trainer"]["budget"]
    if checkpoint and budget and seconds_spent(checkpoint) >= seconds_of(budget) and run.is_complete():
        raise UserError(f"the budget of {budget} is used up: raise trainer.budget=, which covers all sessions")
    if checkpoint and not budget and epochs_done(checkpoint) >= config["trainer"]["max_epochs"] and run.is_complete():
        raise UserError(f"all {epochs_done(checkpoint)} epochs are done: raise trainer.max_epochs=")

    fetch_hub(config, run, checkpoint is not None)
    datamodule = build_datamodule(config)
    fetch_weights(config)
    datamodule.setup()
    state = (checkpoint or {}).get(type(datamodule).__qualname__)
    if isinstance(state, dict):  # Lightning does this too, but only after files of the run have changed
        datamodule.load_state_dict(state)
    copy_previous_stage(config, run, datamodule)
    device = resolve_device(config["trainer"])
    if device != "cpu" and torch.cuda.get_device_capability(device)[0] >= 8:
        torch.set_float32_matmul_precision("high")  # TF32
    previous = load_previous_stage(config, run, device)
    module = build_module(config, len(datamodule.class_names), previous.module if previous else None)
    if config["init"] and checkpoint is None:
        if pretrained_folder(config["init"], "init"):
            start_from_pretrained(config["init"], module)
        else:
            start_from(load_run(config["init"]), module, datamodule.class_names)
    prepare_latents(config, run, module, datamodule, previous)
    if resolve_batch_size(config, run, datamodule, module) and not resumed:
        _store(config, run)
    module.on_nonfinite = config["trainer"]["on_nonfinite"]
    trainer = build_trainer(config, run, checkpoint, started)
    log.info(essentials(datamodule, module, trainer, run, budget))
    if resumed:  # only now, so that a config that cannot be built is not stored in the run folder
        for key, (before, now) in changed(run.read_config(), config).items():
            if key != "resume":
                log.info(f"changed since the run started: {key} was {before} and is {now}")
        if config["model"].get("lr_schedule") == "cosine":
            log.info(f"the learning rate's cosine now ends with {'the budget' if budget else f'epoch {trainer.max_epochs}'}")
        _store(config, run)
    if checkpoint:
        log.info(f"resumed from {checkpoint_path} at optimiser step {steps_before:,}")

    with _promoted_to_last(checkpoint_path, run):
        _fit(config, run, trainer, module, datamodule, checkpoint_path, steps_before)
    if module.run_state.received_signal:  # in the last step or later
        raise Stopped(module.run_state.received_signal)
    if module.run_state.checkpoint_failed:
        raise TrainingEnded(
            f"the last checkpoint could not be written: make room, then continue with {shlex.quote(f'resume={run.path}')}"
        )

    if trainer.is_global_zero:
        save_weights(module, run.weights)
        if any(isinstance(callback, Checkpoints) for callback in trainer.checkpoint_callbacks):
            store_for_sampling(config, run, module, datamodule)
        else:
            log.warning(f"without callbacks.checkpoints, only {run.weights} is saved of this run")
        log.info(closing_summary(run, budget))


def _fit(
    config: dict[str, Any],
    run: RunFolder,
    trainer: "Trainer",
    module: "ImageModel",
    datamodule: "ImageDataModule",
    checkpoint: Path | None,
    steps_before: int,
) -> None:
    """Run ``trainer.fit``; errors after the first optimiser step are raised as ``TrainingEnded``."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from torch.distributed import DistError

    from flowergen.modules.finite_watch import NotFinite

    try:
        with limits_of_training(config):
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except NotFinite as error:
        raise TrainingEnded(f"{one_line(error)}; {last_good(run)}") from error
    except UserError as error:
        if module.optimizer_steps <= steps_before:
            raise
        raise TrainingEnded(one_line(error)) from error
    except RuntimeError as error:
        if trainer.world_size == 1 or not ("gloo" in str(error) or isinstance(error, DistError)):
            raise
        raise TrainingEnded(
            f"another process of this run has ended or cannot be reached ({one_line(error)[:120]}): check its output, then "
            f"continue with {shlex.quote(f'resume={run.path}')}"
        ) from error
    except SystemExit:  # Lightning raises it on Ctrl-C before training has begun
        raise KeyboardInterrupt from None


def _store(config: dict[str, Any], run: RunFolder) -> None:
    if is_first_process():
        overrides = HydraConfig.get().overrides
        lines = [line for line in overrides.hydra if line.startswith("hydra.searchpath=")]
        typed = [line for line in overrides.task if not (line.lstrip("+").startswith("resume=") or is_inherited(line))]
        if "data.batch_size=auto" in typed:  # the batch size that was found is in the config
            typed = [line for line in typed if not line.startswith("++data.batch_size=")]
        run.store(config, [*lines, *typed])


def _checkpoint_to_resume(resume: str, run: RunFolder) -> Path | None:
    """Return the checkpoint to resume from: the given one, else the last, or None if there is none yet."""
    _, named = find_run(resume, "resume")
    last = run.checkpoints / "last.ckpt"
    if named or last.is_file():
        return named or last
    log.info(f"{run.path} was stopped before its first checkpoint: it starts from the beginning")
    return None


@contextmanager
def _promoted_to_last(checkpoint: Path | None, run: RunFolder) -> Iterator[None]:
    """Make the resumed checkpoint ``last.ckpt``, for later resumes; restore the previous one if the session is refused."""
    last = run.checkpoints / "last.ckpt"
    if checkpoint in (None, last) or not is_first_process():
        yield
        return
    before = last.with_name("last.ckpt.before")
    with replacing(last) as partial:
        shutil.copyfile(checkpoint, partial)
        if last.exists():
            before.unlink(missing_ok=True)
            try:
                os.link(last, before)
            except OSError:  # a file system without hard links
                shutil.copyfile(last, before)
    try:
        yield
    except TrainingEnded:
        raise
    except UserError:
        if before.exists():
            before.replace(last)
        raise
    finally:
        before.unlink(missing_ok=True)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


def main() -> None:
    """Check the command line, then let Hydra start the job or the sweep."""
    logging.raiseExceptions = False  # on a full disk, lines may be missing in train.log but not on the console
    signal.signal(signal.SIGTERM, _stop)  # for signals during training, see ``callbacks.stop_signals``
    launcher.register()
    sys.argv[1:] = prepare_train(sys.argv[1:])
    run_job()


if __name__ == "__main__":
    one_line_errors(main)
