"""Times the work that a run does at its end, on a part of it at the beginning."""

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from lightning.pytorch import Trainer

from flowergen.callbacks.budget_plan import EndDurations
from flowergen.evaluation.encoding import batch_of, posteriors
from flowergen.evaluation.latent_store import MAX_FITTED
from flowergen.evaluation.sampling import MAX_FITTED_IN_TRAINING, autoencoder_sampler, first_samples, sampler_in_training
from flowergen.modules.image_model import ImageModel
from flowergen.modules.run_state import Drawing

TIMED_SAMPLES = 8  # number timed on a CPU, where the time is proportional to it
FIT_SECONDS, FIT_SECONDS_PER_PICTURE = 1.0, 3e-4  # to fit scikit-learn's mixture model to latents, on a core of 2 to 3 GHz


@torch.no_grad()
def time_end_of_run(
    trainer: Trainer, pl_module: ImageModel, drawings: Sequence[Drawing], validates: bool, clock: Callable[[], float]
) -> EndDurations:
    """Time a part of a validation, of the pictures and of what is stored.

    Args:
        trainer: the trainer, during training.
        pl_module: the model.
        drawings: what the callbacks draw.
        validates: whether to time a validation.
        clock: returns the time in seconds.
    """
    data, validation, fitting, pictures, storing = trainer.datamodule, 0.0, 0.0, 0.0, 0.0  # type: ignore[attr-defined]
    pl_module.eval()
    if validates:
        loaders = data.val_dataloader()
        loaders = loaders if isinstance(loaders, list) else [loaders]
        batch = trainer.strategy.batch_to_device(next(iter(loaders[0])), pl_module.device)
        for _ in range(2):  # the first one is slow
            start = clock()
            with trainer.precision_plugin.val_step_context():
                pl_module.validation_step(batch, 0)
                _wait_for(pl_module)
            taken = clock() - start
        pl_module.val_means.reset()
        limit = trainer.limit_val_batches
        validation = taken * sum(
            min(len(loader), limit) if isinstance(limit, int) else len(loader) * limit for loader in loaders
        )
    if pl_module.sampling_model.denoises:
        sampler = sampler_in_training(pl_module, data)
    else:
        sampler = autoencoder_sampler(pl_module, None, "prior", False, pl_module.seed)  # takes as long as a fitted mixture
        import_module("sklearn.mixture")  # a second or two, more on busy machines: better now than after the last step
        rows = data.rows["train"]
        part = rows[: batch_of(data.picture_shape)]
        start = clock()
        list(posteriors(pl_module, data, part, flips=False))
        seconds_per_picture = (clock() - start) / len(part) + FIT_SECONDS_PER_PICTURE
        fitting = FIT_SECONDS + seconds_per_picture * min(len(rows), MAX_FITTED_IN_TRAINING)
        storing = FIT_SECONDS + seconds_per_picture * min(len(rows), MAX_FITTED)
    for num_samples in (drawing.num_samples for drawing in drawings if drawing.num_samples):
        num = min(num_samples, TIMED_SAMPLES) if pl_module.device.type == "cpu" else num_samples
        start = clock()
        first_samples(sampler, num)
        _wait_for(pl_module)
        pictures = fitting + (clock() - start) * num_samples / num
    pl_module.train()
    return EndDurations(validation, pictures, storing)


def _wait_for(pl_module: ImageModel) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize()
