"""A small metric card every so many epochs."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from flowergen.evaluation.card import FIGURES
from flowergen.evaluation.judges import load_judges
from flowergen.evaluation.measure import measure_samples
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.memorising import Look, is_best_without_copying, memorising_from
from flowergen.evaluation.pictures import Sampled, real_pictures_of
from flowergen.evaluation.real_side import RealSide
from flowergen.evaluation.sampling import NO_CLASS, autoencoder_sampler, diffusion_sampler
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.viz.curves import plot_looks
from flowergen.viz.grids import comparison_grid, write_png

log = logging.getLogger(__name__)

BATCH_SIZE = 64


class PeriodicEvaluation(Callback):
    """Samples from fixed noise against validation pictures: every second one is the reference, the others calibrate.

    Logs ``eval/*``, draws ``evaluation.png`` and the worst pairs, and names checkpoints to keep: ``best_METRIC.ckpt``, and
    ``before_memorising.ckpt`` at the lowest held-out loss without copies (``evaluation.memorising``).

    Args:
        folder: the run folder.
        every_epochs: how often, and after the last epoch; 0 for never.
        num_samples: of an evaluation.
        extractor, weights_dir: see ``load_judges``.
        metric: chooses ``best_METRIC.ckpt``.
    """

    def __init__(self, folder: str | Path, every_epochs: int, num_samples: int, extractor: str, weights_dir: str, metric: str):
        self.folder, self.weights_dir, self.every_epochs = Path(folder), weights_dir, every_epochs
        self.num_samples, self.extractor, self.metric = num_samples, extractor, metric
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self.memorising: int | None = None
        self.checkpoint_names: list[str] = []  # that ``Checkpoints`` keeps of this epoch

    def on_train_start(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Whatever has to be fetched or trained first."""
        if not self.every_epochs or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        real = real_pictures_of(data, self.num_samples, "val")
        judges = load_judges(self.extractor, real, data.name, data.cache_dir, self.weights_dir, pl_module.device)
        notes = list[str]()
        self.side = RealSide(real, judges, notes)
        for line in [*judges.missing, *notes]:
            log.info(f"evaluation: {line}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Look, log, draw, and say which checkpoints to keep."""
        epoch = trainer.current_epoch + 1
        self.checkpoint_names = []
        due = self.every_epochs and (epoch % self.every_epochs == 0 or epoch == trainer.max_epochs)
        if not due or not trainer.is_global_zero:
            return
        measured = self._measure(pl_module)
        values = {f"eval/{metric}": of["samples"][0] for metric, of in measured.results.items() if "samples" in of}
        values |= {
            f"eval/{metric}_held_out": of["held_out"][0]
            for metric, of in measured.results.items()
            if metric.startswith("copies") and "held_out" in of
        }
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **values}, step=pl_module.optimizer_steps)
        sign = 1 if pl_module.best_mode == "min" else -1
        held_out = sign * float(trainer.callback_metrics.get(f"val/{pl_module.best_metric}", torch.tensor(float("nan"))))
        self.history.append({"epoch": epoch, "held_out": held_out, **values})
        self._choose_checkpoints(values)
        for pairs in measured.pairs[:1]:
            samples, nearest = (torch.from_numpy(images).float() / 255 for images in (pairs.samples, pairs.nearest))
            write_png(self.folder / "images" / f"copies_epoch_{epoch}.png", comparison_grid(samples, nearest, columns=8))
        plot_looks(self.history, self.memorising, self.folder / "evaluation.png")

    def _measure(self, pl_module: ImageModel) -> Measured:
        was_training = pl_module.training
        pl_module.eval()
        real, measured = self.side.real, Measured()
        if isinstance(pl_module, LatentDDPMModule):
            sampler = diffusion_sampler(pl_module, pl_module.sampling, pl_module.seed)
            classes = np.resize(real.reference.labels[real.reference.rows], self.num_samples)
        else:
            sampler = autoencoder_sampler(pl_module, None, "prior", False, pl_module.seed)
            classes = np.full(self.num_samples, NO_CLASS)
        generated = Sampled(sampler, torch.from_numpy(classes.astype(np.int64)), BATCH_SIZE, False)
        with TemporaryDirectory() as work:
            measure_samples(generated, self.side, self.num_samples, 1, Path(work), measured)
        pl_module.train(was_training)
        return measured

    def _choose_checkpoints(self, values: dict[str, float]) -> None:
        value = values.get(f"eval/{self.metric}")
        sign = 1 if FIGURES[self.metric].better == "lower" else -1
        if value is not None and (self.best is None or sign * value < sign * self.best):
            self.best = value
            self.checkpoint_names.append(f"best_{self.metric}.ckpt")
        looks = [look for entry in self.history if (look := self._look(entry))]
        if not looks or looks[-1].epoch != self.history[-1]["epoch"]:
            return
        before, self.memorising = self.memorising, memorising_from(looks)
        if self.memorising is None and is_best_without_copying(looks):
            self.checkpoint_names.append("before_memorising.ckpt")
        if before is None and self.memorising is not None:
            log.info(
                f"memorising begins at epoch {self.memorising}: the held-out loss rises, and {looks[-1].copies} of "
                f"{looks[-1].num} samples are copies of training pictures (held-out pictures: {looks[-1].control_copies} of "
                f"{looks[-1].num_control}); before_memorising.ckpt is from before"
            )

    def _look(self, entry: dict[str, float]) -> Look | None:
        """Of the space in which more samples are copies; None where nothing was held out."""
        num, num_control = self.num_samples, len(self.side.real.reference)
        rates = [
            (entry[name], entry[f"{name}_held_out"])
            for space in ("pixels", "features")
            if f"{(name := f'eval/copies_{space}_calibrated')}_held_out" in entry
        ]
        if not rates or entry["held_out"] != entry["held_out"]:
            return None
        copies, control = max(rates, key=lambda pair: pair[0] - pair[1])
        return Look(int(entry["epoch"]), entry["held_out"], round(copies * num), num, round(control * num_control), num_control)

    def state_dict(self) -> dict[str, Any]:
        """What must outlive the process."""
        return {"history": self.history, "best": self.best, "memorising": self.memorising}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.history, self.best = state_dict["history"], state_dict["best"]
        self.memorising = state_dict["memorising"]
