"""Callback that computes a few evaluation metrics at an interval of epochs."""

import logging
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from flowergen.callbacks.tolerated_write import ToleratedWrite
from flowergen.data.image_datamodule import ImageDataModule
from flowergen.errors import UserError
from flowergen.evaluation.card import METRICS, key_in_logs
from flowergen.evaluation.extractors import chosen
from flowergen.evaluation.measure import measure_samples
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.memorising import Evaluation, is_best_without_copying, memorising_from
from flowergen.evaluation.networks import load_evaluation_networks
from flowergen.evaluation.pictures import Sampled, real_pictures_of, repeated
from flowergen.evaluation.reference import PreparedReference
from flowergen.evaluation.sampling import NO_CLASS, sampler_in_training
from flowergen.modules.image_model import ImageModel
from flowergen.modules.run_state import Drawing
from flowergen.viz.curves import plot_evaluations
from flowergen.viz.grids import comparison_grid, write_png

log = logging.getLogger(__name__)

BATCH_SIZE = 64


class PeriodicEvaluation(Callback):
    """Compares samples, drawn as for the image grids, with validation pictures: every second one is a reference, the others
    are used for calibration.

    Logs ``eval/*`` (``trainset_eval/*`` if nothing is held out), draws ``evaluation.png`` and the worst pairs, and names
    checkpoints to keep: ``best_METRIC.ckpt``, and ``before_memorising.ckpt`` at the lowest held-out loss without copies
    (``evaluation.memorising``). The first process measures, the others wait.

    Args:
        folder: the run folder.
        every_epochs: interval in epochs, in addition to the last epoch; 0 for never.
        num_samples: samples per evaluation.
        extractor, weights_dir: see ``load_evaluation_networks``.
        metric: metric that selects ``best_METRIC.ckpt``.
    """

    def __init__(self, folder: str | Path, every_epochs: int, num_samples: int, extractor: str, weights_dir: str, metric: str):
        self.folder, self.weights_dir, self.every_epochs = Path(folder), weights_dir, every_epochs
        self.num_samples, self.metric = num_samples, metric
        self.requested_extractor, self.extractor = extractor, chosen(extractor, weights_dir)
        self.history: list[dict[str, Any]] = []
        self.best: float | None = None
        self._best_before: float | None = None
        self.memorising: int | None = None
        self.checkpoint_names: list[str] = []  # names of copies of this epoch's checkpoint, see ``RunState.checkpoint_copies``
        self._disk = ToleratedWrite("evaluation.png")

    def on_fit_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Say how often samples will be drawn."""
        pl_module.run_state.drawings[self.state_key] = Drawing(self.every_epochs, 0)

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Download or train what is needed, in every process, so that all of them stop if that fails."""
        if not self.every_epochs:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        real = real_pictures_of(data, self.num_samples, "val")
        networks = load_evaluation_networks(
            self.requested_extractor, real, data.name, data.cache_dir, self.weights_dir, pl_module.device
        )
        if not trainer.is_global_zero:
            return
        notes = [*networks.notes, *networks.note_on_training(pl_module.features_trained_with)]
        notes += [real.note] if real.note else []
        self.prepared = PreparedReference(real, networks, notes)
        self.prefix = "eval" if data.held_out else "trainset_eval"
        validated_every = trainer.check_val_every_n_epoch or 1
        if self.every_epochs % validated_every:
            notes.append(
                f"memorising is detected only by evaluations in epochs with validation, every {validated_every}: "
                "make callbacks.evaluation.every_epochs a multiple of trainer.check_val_every_n_epoch"
            )
        for line in [*(f"not measured: {what}" for what in networks.missing), *notes]:
            log.info(f"evaluation: {line}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Evaluate, log, draw, and choose the checkpoints to keep."""
        epoch, may_draw = trainer.current_epoch + 1, pl_module.run_state.may_draw
        self.checkpoint_names, self._best_before = [], self.best
        due = self.every_epochs and ((may_draw and epoch % self.every_epochs == 0) or epoch == trainer.max_epochs)
        if not due or not trainer.is_global_zero:
            return
        try:
            measured = self._measure(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        except (UserError, OSError) as error:  # e.g. a full disk, which should not end the training
            log.warning(f"evaluation of epoch {epoch} failed: {error}")
            return
        values = {
            self._name(metric): columns["samples"][0] for metric, columns in measured.results.items() if "samples" in columns
        }
        for metric, columns in measured.results.items():
            if metric.startswith("copies") and "held_out" in columns:
                values[f"{self._name(metric)}_held_out"] = columns["held_out"][0]
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **values}, step=pl_module.optimizer_steps)
        log.info(f"evaluation of epoch {epoch}: {'  '.join(f'{name} {value:.4g}' for name, value in values.items())}")
        self._add(epoch, held_out_loss(trainer, pl_module), values)
        pl_module.run_state.checkpoint_copies |= dict.fromkeys(self.checkpoint_names, self.restore_best)
        with self._disk:
            for pairs in measured.pairs[:1]:
                samples, nearest = (torch.from_numpy(images).float() / 255 for images in (pairs.samples, pairs.nearest))
                write_png(
                    self.folder / "images" / f"copies_epoch_{epoch:04d}.png", comparison_grid(samples, nearest, columns=8)
                )
            shown = [{"epoch": entry["epoch"], "held_out_loss": entry["loss"], **entry["values"]} for entry in self.history]
            plot_evaluations(shown, self.memorising, self.folder / "evaluation.png")

    def restore_best(self) -> None:
        """Restore the best value from before this epoch, whose checkpoint could not be written."""
        self.best = self._best_before

    def _name(self, metric: str) -> str:
        return f"{self.prefix}/{key_in_logs(metric, self.extractor)}"

    def _measure(self, pl_module: ImageModel, data: ImageDataModule) -> Measured:
        was_training = pl_module.training
        pl_module.eval()
        real, measured = self.prepared.real, Measured()
        sampler = sampler_in_training(pl_module, data)
        classes = np.full(self.num_samples, NO_CLASS)
        if sampler.model.denoises:
            classes = repeated(real.reference.labels[real.reference.rows], self.num_samples)
        generated = Sampled(sampler, torch.from_numpy(classes.astype(np.int64)), BATCH_SIZE, False)
        steps = logging.getLogger("flowergen.evaluation")  # logs every step, which is meant for the evaluate command
        level = steps.level
        steps.setLevel(logging.WARNING)
        try:
            with TemporaryDirectory() as work:
                measure_samples(generated, self.prepared, self.num_samples, 1, Path(work), measured)
        finally:
            steps.setLevel(level)
            pl_module.train(was_training)
        return measured

    def _add(self, epoch: int, loss: float | None, values: dict[str, float]) -> None:
        """Add an evaluation to the history, and choose the checkpoints to keep."""
        num_control = len(self.prepared.real.reference)
        self.history.append(
            {"epoch": epoch, "loss": loss, "values": values, "num": self.num_samples, "num_control": num_control}
        )
        value = values.get(self._name(self.metric))
        sign = 1 if METRICS[self.metric].better == "lower" else -1
        if value is not None and (self.best is None or sign * value < sign * self.best):
            self.best = value
            self.checkpoint_names.append(f"best_{self.metric}.ckpt")
        evaluations = [evaluation for entry in self.history if (evaluation := self._evaluation(entry))]
        if not evaluations or evaluations[-1].epoch != epoch:
            return
        before, self.memorising = self.memorising, memorising_from(evaluations)
        if self.memorising is None and is_best_without_copying(evaluations):
            self.checkpoint_names.append("before_memorising.ckpt")
        if before is None and self.memorising is not None:
            last = evaluations[-1]
            log.info(
                f"memorising begins at epoch {self.memorising}: the held-out loss has risen, and {last.copies} of {last.num} "
                f"samples are copies of training pictures (held-out pictures: {last.control_copies} of {last.num_control}); "
                "before_memorising.ckpt is no longer updated"
            )

    def _evaluation(self, entry: dict[str, Any]) -> Evaluation | None:
        """Return the counts in the space with the larger excess of copies; None without a validation or a control."""
        names = [self._name(f"copies_{space}_calibrated") for space in ("pixels", "features")]
        values = entry["values"]
        rates = [(values[name], values[f"{name}_held_out"]) for name in names if f"{name}_held_out" in values]
        if not rates or entry["loss"] is None:
            return None
        rate, control = max(rates, key=lambda pair: pair[0] - pair[1])
        num, num_control = entry["num"], entry["num_control"]
        return Evaluation(entry["epoch"], entry["loss"], round(rate * num), num, round(control * num_control), num_control)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        settings = {"extractor": self.extractor, "num_samples": self.num_samples}
        found = {"history": self.history, "best": self.best, "memorising": self.memorising}
        return {"settings": settings, "metric": self.metric, **found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, unless it was measured with other settings."""
        if state_dict["settings"] != self.state_dict()["settings"]:
            log.info("evaluation: its settings have changed, so its history starts over")
            return
        self.history, self.memorising = state_dict["history"], state_dict["memorising"]
        if state_dict["metric"] == self.metric:
            self.best = state_dict["best"]


def held_out_loss(trainer: Trainer, pl_module: ImageModel) -> float | None:
    """Return the value that selects best.ckpt, signed so that lower is better.

    None without a validation in this epoch, before weights may be best, or if the value is not finite.
    """
    if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) or not pl_module.eligible_as_best:
        return None
    value = trainer.callback_metrics.get(f"val/{pl_module.best_metric}")
    if value is None or not math.isfinite(value):
        return None
    return float(value) * (1 if pl_module.best_mode == "min" else -1)
