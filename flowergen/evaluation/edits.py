"""Edits of given pictures by a diffusion model.

Every edit takes pictures (N, C, H, W) in [0, 1] and returns (N, L, num, C, H, W) in [0, 1] on the CPU. Edit j of a picture uses
the same noise for all pictures and classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flowergen.data.progress_bar import with_progress_bar
from flowergen.diffusion import edits
from flowergen.diffusion.samplers import ddim, sampler_of
from flowergen.diffusion.steps import last_of
from flowergen.errors import UserError
from flowergen.evaluation.latent_edits import BATCH, decode, encode, write_single
from flowergen.metrics.reconstruction import psnr
from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
from flowergen.randomness import normal_per_sample
from flowergen.viz.grids import image_grid, write_png

NUM_RESAMPLINGS = 5  # resamplings of each step of inpainting

Edit = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # x_0 (N, C, h, w), labels (N,), numbers of the noise -> (N, C, h, w)


@dataclass(frozen=True)
class EditSettings:
    """Settings shared by all edits.

    Attributes:
        model: a model in eval mode.
        labels: (L,) int64 classes to edit towards, K for none.
        num: edits of each picture for each class.
        seed: random seed for the noise.
        sampling: sampler settings.
    """

    model: LatentDDPMModule
    labels: Tensor
    num: int
    seed: int
    sampling: SamplingSettings


def img2img(settings: EditSettings, x: Tensor, strength: float) -> Tensor:
    """Add noise to the pictures and remove it again (SDEdit, arXiv:2108.01073).

    ``strength`` is the fraction of the sampler's steps that are taken: 0 gives the reconstruction, 1 a new sample.
    """
    model, sampling = settings.model, settings.sampling
    levels, sampler = edits.last_levels(model.levels(sampling), strength), sampler_of(sampling.sampler, sampling.eta)

    def edit(x0: Tensor, label: Tensor, index: Sequence[int]) -> Tensor:
        draw = _noise(settings, index)
        x_t = edits.noised(x0, levels[0], draw("picture"))
        return last_of(sampler(model.predictor(label, sampling), x_t, levels, lambda step: draw(f"step {step}")), x_t)

    return _edited(settings, x, edit)


def inpaint(settings: EditSettings, x: Tensor, known: Tensor) -> Tensor:
    """Sample the unknown part of the pictures to fit the known one (RePaint, arXiv:2201.09865), which stays as it is.

    ``known`` is (1, H, W) bool, the pixels to keep. A position of the latent is known if all its pixels are. Sampling is
    ancestral, whatever the sampler.

    Raises:
        UserError: the latents have no positions.
    """
    model = settings.model
    _, height, width = model.latent_shape
    if (height, width) == (1, 1):
        raise UserError("mode=inpaint needs latents with positions, and those of this model are flat: use mode=img2img")
    known_latents = F.adaptive_max_pool2d((~known).float(), (height, width)) == 0  # (1, h, w)
    levels = model.levels(settings.sampling)

    def edit(x0: Tensor, label: Tensor, index: Sequence[int]) -> Tensor:
        draw, predict, held = _noise(settings, index), model.predictor(label, settings.sampling), known_latents.to(x0.device)
        x_t = draw("prior")
        return last_of(edits.inpaint(predict, x_t, levels, lambda k: draw(f"draw {k}"), x0, held, NUM_RESAMPLINGS), x_t)

    return torch.where(known, x[:, None, None], _edited(settings, x, edit))


def invert(settings: EditSettings, x: Tensor) -> Tensor:
    """Find the noise that each picture is sampled from without a class, and sample from it for the classes.

    The sampler is ``ddim`` with eta = 0. ``num`` is 1 whatever the settings say, as there is nothing random.
    """
    model, sampling = settings.model, replace(settings.sampling, sampler="ddim", eta=0.0)
    levels = model.levels(sampling)

    def edit(x0: Tensor, label: Tensor, index: Sequence[int]) -> Tensor:
        noise = edits.invert(model.predictor(torch.full_like(label, model.num_classes), sampling), x0, levels)
        return last_of(ddim(model.predictor(label, sampling), noise, levels, lambda _: noise), noise)

    return _edited(replace(settings, num=1), x, edit)


def write(
    settings: EditSettings, x: Tensor, edited: Tensor, mode: str, names: Sequence[str], class_names: Sequence[str], folder: Path
) -> list[str]:
    """Write the result of an edit as ``MODE.png`` and single pictures, and return lines for the user.

    Args:
        settings: see ``EditSettings``.
        x: the original pictures.
        edited: the result.
        mode: mode of editing, for the file names.
        names: names of the pictures, for their files.
        class_names: class names of the edits.
        folder: output folder.
    """
    x_hat = decode(settings.model, encode(settings.model, x).mean)
    rows = torch.cat((x[:, None], x_hat[:, None], edited.flatten(1, 2)), dim=1)  # (N, 2 + L num, C, H, W)
    write_png(folder / f"{mode}.png", image_grid(rows.flatten(0, 1), columns=rows.shape[1]))
    for name, of_picture in zip(names, edited, strict=True):
        for label, of_class in enumerate(of_picture):
            for j, image in enumerate(of_class):
                write_single(folder / f"{name}_{mode}_{label:02d}_{j + 1:02d}.png", image)
    lines = [
        f"columns: original, reconstruction, then {', '.join(class_names)}" + f" ({edited.shape[2]} each)" * (settings.num > 1)
    ]
    if mode == "invert":
        again = [
            psnr(edited[:, i, 0], x_hat).mean()
            for i, label in enumerate(settings.labels)
            if label == settings.model.num_classes
        ]
        lines += [
            f"sampled again from its noise, the reconstruction is reproduced with a PSNR of {value:.2f} dB" for value in again
        ]
    return lines


def _noise(settings: EditSettings, index: Sequence[int]) -> Callable[[str], Tensor]:
    draw = partial(normal_per_sample, index, settings.model.latent_shape, seed=settings.seed)
    return lambda purpose: draw(purpose=f"edit, {purpose}").to(settings.model.device)


def _edited(settings: EditSettings, x: Tensor, edit: Edit) -> Tensor:
    model, shape = settings.model, (len(x), len(settings.labels), settings.num)
    x0 = encode(model, x).mean  # (N, C, h, w)
    picture, label, index = (part.flatten() for part in torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij"))
    parts, batches = [], torch.arange(len(picture)).split(BATCH)
    for rows in with_progress_bar("editing", batches, len(picture), size=len) if len(batches) > 1 else batches:
        with torch.inference_mode():
            z = edit(model.scaled(x0[picture[rows]].to(model.device)), settings.labels[label[rows]], index[rows].tolist())
            parts.append(decode(model, model.unscaled(z)))
    return torch.cat(parts).unflatten(0, shape)
