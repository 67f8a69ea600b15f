"""``python -m flowergen.train``: train a model into a new run folder, or go on with one."""

import logging
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flowergen.config import conf_dir, launcher
from flowergen.config.autoencoder import is_taken_over
from flowergen.config.command import changed, is_first_process, one_line, one_line_errors, prepare_train
from flowergen.config.overrides import resolve
from flowergen.config.run_folder import Provenance, RunFolder, find_run
from flowergen.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.modules.image_model import ImageModel

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def run_job(composed: DictConfig) -> None:
    """One run, in the folder that Hydra has made for it."""
    config = resolve(composed)
    run = RunFolder(HydraConfig.get().runtime.output_dir)
    if not is_first_process():  # the first one says whatever is to be said
        logging.getLogger().setLevel(logging.CRITICAL)
        try:
            train(config, run)
        except UserError:
            sys.exit(2)
        return
    try:
        with run.locked(), Provenance(run, config["seed"]):
            train(config, run)
    except UserError as error:
        log.error(f"error: {one_line(error)}")
        sys.exit(2)


def train(config: dict[str, Any], run: RunFolder) -> None:
    """Build everything, fit, and say where it lies."""
    import torch
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from flowergen.config.build import (
        build_datamodule,
        build_module,
        build_trainer,
        epochs_done,
        fetch_weights,
        load_autoencoder,
        read_checkpoint,
        resolve_device,
        save_weights,
    )
    from flowergen.config.latents import carry_autoencoder, prepare_latents, store_what_sampling_needs

    _quieten()
    if config["trainer"]["num_threads"]:
        torch.set_num_threads(config["trainer"]["num_threads"])
    resumed = config["resume"] is not None
    if not resumed:
        _store(config, run)
    checkpoint_path = _checkpoint_to_resume(config["resume"], run)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    if checkpoint and epochs_done(checkpoint) >= config["trainer"]["max_epochs"] and run.is_complete():
        raise UserError(f"all {epochs_done(checkpoint)} epochs are done: give more with trainer.max_epochs=")

    datamodule = build_datamodule(config)
    fetch_weights(config)
    datamodule.setup()
    carry_autoencoder(config, run)
    autoencoder = load_autoencoder(config, run, resolve_device(config["trainer"]))
    module = build_module(config, len(datamodule.class_names), autoencoder.module if autoencoder else None)
    prepare_latents(config, run, module, datamodule, autoencoder)
    trainer = build_trainer(config, run, resumed_from=checkpoint)
    log.info(_essentials(datamodule, module, trainer, run))
    if resumed:  # only now: what could not be built must not stay behind in the run folder
        for key, (before, now) in changed(run.read_config(), config).items():
            if key != "resume":
                log.info(f"changed since the run started: {key} was {before} and is {now}")
        if config["model"].get("lr_schedule") == "cosine":
            log.info(f"the learning rate's cosine now ends with epoch {config['trainer']['max_epochs']}")
        _store(config, run)
    if checkpoint:
        log.info(f"resumed from {checkpoint_path} at optimiser step {checkpoint['flowergen']['optimizer_steps']:,}")

    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except SystemExit:  # how Lightning answers Ctrl-C
        log.info(f"interrupted; go on with: python -m flowergen.train {shlex.quote(f'resume={run.path}')}")
        raise KeyboardInterrupt from None

    if trainer.is_global_zero:
        save_weights(module, run.weights)
        store_what_sampling_needs(config, run, module, datamodule)
        log.info(_farewell(run))


def _store(config: dict[str, Any], run: RunFolder) -> None:
    if is_first_process():
        given = HydraConfig.get().overrides
        lines = [line for line in given.hydra if line.startswith("hydra.searchpath=")]
        typed = [line for line in given.task if not (line.lstrip("+").startswith("resume=") or is_taken_over(line))]
        run.store(config, [*lines, *typed])


def _checkpoint_to_resume(resume: str | None, run: RunFolder) -> Path | None:
    """Where to go on from; a checkpoint that was named becomes the last one, for whoever resumes after this process."""
    if resume is None:
        return None
    _, named = find_run(resume, "resume")
    last = run.checkpoints / "last.ckpt"
    if named and named != last:
        if not is_first_process():  # the copy may not be there yet
            return named
        partial = last.with_name("last.ckpt.partial")
        shutil.copyfile(named, partial)
        partial.replace(last)
    if last.is_file():
        return last
    log.info(f"{run.path} was stopped before its first checkpoint: it starts from the beginning")
    return None


def _essentials(datamodule: "ImageDataModule", module: "ImageModel", trainer: "Trainer", run: RunFolder) -> str:
    import torch

    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    device = f"{trainer.num_devices * trainer.num_nodes} x {trainer.strategy.root_device.type}"
    threads = f", {torch.get_num_threads()} threads" if trainer.strategy.root_device.type == "cpu" else ""
    return "\n".join(
        [
            f"data       {datamodule.summary()}",
            f"model      {type(module).__name__}: {module.summary()}, {parameters:,} parameters",
            f"training   {trainer.max_epochs} epochs, batches of {datamodule.batch_size}",
            f"device     {device}{threads}, precision {trainer.precision}",
            f"run folder {run.path}",
        ]
    )


def _farewell(run: RunFolder) -> str:
    lines = ["done"]
    for what, path in (("pictures", run.images), ("checkpoints", run.checkpoints), ("numbers", run.metrics)):
        if path.exists():
            lines.append(f"{what:<12} {path}")
    if run.tensorboard.exists():
        lines.append(f"look closer  tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    lines.append(f"go on        python -m flowergen.train {shlex.quote(f'resume={run.path}')} trainer.max_epochs=...")
    return "\n".join(lines)


def _quieten() -> None:
    """Lightning's advice that does not hold here: batches come from a memory map, and our order is resumable."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # says in four lines what our error says in one
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # the moving average
        ".*sync_dist=True.*",  # what is logged has been summed over the devices
        ".*treespec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def main() -> None:
    """Check the command line, then let Hydra start the job, or the sweep."""
    launcher.register()
    sys.argv[1:] = prepare_train(sys.argv[1:])
    run_job()


if __name__ == "__main__":
    one_line_errors(main)
