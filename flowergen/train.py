"""``python -m flowergen.train``: train a model into a new run folder, or go on with one."""

import logging
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from flowergen.config import conf_dir
from flowergen.config.command import is_first_process, one_line, one_line_errors, prepare_train
from flowergen.config.launcher import ProcessLauncher
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
    if not is_first_process():
        logging.getLogger().setLevel(logging.ERROR)
        train(config, run)
        return
    try:
        with Provenance(run, config["seed"]):
            run.store(config, [line for line in HydraConfig.get().overrides.task if not line.startswith("resume=")])
            train(config, run)
    except UserError as error:
        log.error(f"error: {one_line(error)}")
        sys.exit(2)


def train(config: dict[str, Any], run: RunFolder) -> None:
    """Build everything, fit, and say where it lies."""
    import torch
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from safetensors.torch import save_file

    from flowergen.config.build import build_datamodule, build_module, build_trainer, read_checkpoint

    _quieten()
    if config["trainer"]["num_threads"]:
        torch.set_num_threads(config["trainer"]["num_threads"])
    checkpoint_path = _checkpoint_to_resume(config["resume"], run)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None

    datamodule = build_datamodule(config)
    datamodule.setup()
    module = build_module(config)
    trainer = build_trainer(config, run, resumed_from=checkpoint)
    log.info(_essentials(datamodule, module, trainer, run))
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
        save_file({name: tensor.contiguous() for name, tensor in module.inference_net.state_dict().items()}, run.weights)
        log.info(_farewell(run))


def _checkpoint_to_resume(resume: str | None, run: RunFolder) -> Path | None:
    if resume is None:
        return None
    _, named = find_run(resume, "resume")
    path = named or run.checkpoints / "last.ckpt"
    if named or path.is_file():
        return path
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
    return "\n".join(
        [
            "done",
            f"pictures     {run.images}",
            f"checkpoints  {run.checkpoints}",
            f"numbers      {run.metrics}, {run.path / 'loss_plot.png'}",
            f"look closer  tensorboard --logdir {shlex.quote(str(run.tensorboard))}",
            f"go on        python -m flowergen.train {shlex.quote(f'resume={run.path}')} trainer.max_epochs=...",
        ]
    )


def _quieten() -> None:
    """Lightning's advice that does not hold here: batches come from a memory map, and our order is resumable."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*smaller than the logging interval.*",
        ".*modules? in eval mode.*",  # the moving average
        ".*treespec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def main() -> None:
    """Check the command line, then let Hydra start the job, or the sweep."""
    Plugins.instance().register(ProcessLauncher)
    sys.argv[1:] = prepare_train(sys.argv[1:])
    run_job()


if __name__ == "__main__":
    one_line_errors(main)
