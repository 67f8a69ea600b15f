"""Sample files: a grid, single pictures or one archive, and the denoising as GIF, strip and map."""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowergen.data.progress_bar import with_progress_bar
from flowergen.evaluation.fast_network import FastNetwork
from flowergen.evaluation.latent_store import LatentStore
from flowergen.evaluation.sampling import NO_CLASS, trajectory
from flowergen.files import replacing
from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
from flowergen.picture_shape import PictureShape
from flowergen.viz.animations import write_gif
from flowergen.viz.grids import enlarged, image_grid, labelled_grid, write_png
from flowergen.viz.latent_map import draw_paths, principal_plane

GRID_COLUMNS = 16  # maximum pictures per class in the grid
GRID_PICTURES = 1024  # approximate number of pictures in the grid
MAX_GRID_PX = 16_384  # approximate side up to which the grid is enlarged, half of what browsers display
STRIP_COLUMNS = 9
HOLD_FRAMES = 10  # repetitions of a GIF's last frame
MAX_NAME_BYTES = 150  # bytes of a class name in a file name; file systems allow 255 for the whole name


@contextmanager
def npz_writer(path: Path, labels: Tensor, shape: PictureShape) -> Iterator[Callable[[np.ndarray], object]]:
    """Write an ``.npz`` archive of pictures and classes incrementally; the file appears once it is complete.

    The layout is that of guided-diffusion's samples (arXiv:2105.05233): ``arr_0`` (N, H, W, C) uint8, ``arr_1`` (N,) int64.

    Args:
        path: output file.
        labels: (N,) int64 classes of all pictures.
        shape: (C, H, W) of the pictures.

    Yields:
        A function that appends (n, H, W, C) uint8 pictures.
    """
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as pixels_file:
            shape_of_all = (len(labels), shape.height, shape.width, shape.channels)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape_of_all}
            np.lib.format.write_array_header_1_0(pixels_file, header)
            yield lambda pixels: pixels_file.write(pixels.tobytes())
        with archive.open("arr_1.npy", "w") as labels_file:
            np.lib.format.write_array(labels_file, labels.numpy(), allow_pickle=False)


def write_samples(
    folder: Path,
    batches: Iterator[tuple[int, Tensor]],
    labels: Tensor,
    names: Sequence[str],
    shape: PictureShape,
    seed: int,
    file_format: str,
) -> list[str]:
    """Write ``grid.png`` and either ``pictures/*.png``, with seed, class and number in their names, or ``samples.npz``.

    Only in the grid, small pictures are enlarged to be viewed, see ``PictureShape.enlargement`` and ``MAX_GRID_PX``.

    Args:
        folder: output folder.
        batches: number of the first sample, and (n, C, H, W) in [0, 1].
        labels: (N,) int64 classes of all samples, ``NO_CLASS`` for none.
        names: class names.
        shape: (C, H, W) of the pictures.
        seed: random seed for the samples.
        file_format: ``png`` or ``npz``.

    Returns:
        Lines for the user.
    """
    num, shown = len(labels), list[tuple[int, Tensor]]()
    taken: dict[int, int] = {}
    a_class = 256 if labels[0] == NO_CLASS else min(GRID_COLUMNS, max(1, GRID_PICTURES // len(labels.unique())))
    as_archive = file_format == "npz"
    with npz_writer(folder / "samples.npz", labels, shape) if as_archive else nullcontext() as append:
        for first, x in with_progress_bar("sampling", batches, num, size=lambda batch: len(batch[1])):
            pixels = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            if append is not None:
                append(pixels)
            numbered = enumerate(zip(labels[first : first + len(x)].tolist(), x, pixels, strict=True), start=first)
            for number, (label, image, image_pixels) in numbered:
                if append is None:
                    write_png(folder / "pictures" / f"{file_name(seed, label, names)}_{number:05d}.png", image_pixels)
                taken[label] = taken.get(label, 0) + 1
                if taken[label] <= a_class:
                    shown.append((label, image.clone()))  # a copy that does not keep the batch in memory
    if labels[0] == NO_CLASS:
        images = torch.stack([image for _, image in shown])
        raw = image_grid(images, max(1, round(len(images) ** 0.5)))
        grid = enlarged(raw, max(1, min(shape.enlargement, MAX_GRID_PX // max(raw.shape))))
    else:
        by_class: dict[int, list[Tensor]] = {}
        for label, image in shown:
            by_class.setdefault(label, []).append(image)
        rows = [(f"{label} {names[label]}", torch.stack(images)) for label, images in by_class.items()]
        grid = labelled_grid(rows, max(1, min(shape.enlargement, MAX_GRID_PX // (len(rows) * shape.height))))
    write_png(folder / "grid.png", grid)
    classes = f" of {len(taken)} classes" if labels[0] != NO_CLASS else ""
    return [f"{num:,} pictures{classes}: grid.png and {'samples.npz' if as_archive else 'pictures/'}"]


def write_denoising(
    folder: Path,
    model: LatentDDPMModule,
    sampling: SamplingSettings,
    index: Sequence[int],
    labels: Tensor,
    names: Sequence[str],
    seed: int,
    store: LatentStore | None,
    batch_size: int,
    net: FastNetwork | None = None,
) -> list[str]:
    """Write the denoising of samples: a GIF and a strip each, decoded x_t above decoded x0_hat, and the paths on a map.

    The map is the principal plane of the training latents, in the scaled space of the diffusion.

    Args:
        folder: output folder.
        model: a model in eval mode.
        sampling: settings that the samples were drawn with.
        index: (N,) numbers of the samples.
        labels: (N,) int64 classes of the samples.
        names: class names.
        seed: random seed for the samples.
        store: the training latents; None for no map.
        batch_size: samples per batch.
        net: the denoiser that the samples were drawn with, see ``diffusion_sampler``.

    Returns:
        Lines for the user.
    """
    parts = zip(torch.as_tensor(index).split(batch_size), labels.split(batch_size), strict=True)
    trajectories = [trajectory(model, part.tolist(), part_labels, seed, sampling, net) for part, part_labels in parts]
    x_t, x0_hat = (torch.cat(states) for states in zip(*trajectories, strict=True))  # (N, T, C, h, w) each
    for path, path0, i, label in zip(x_t, x0_hat, index, labels.tolist(), strict=True):
        noisy, guess = (_decode(model, z) for z in (path, path0))  # (T, C, H, W) each
        name = f"{file_name(seed, label, names)}_{i:05d}"
        columns = torch.linspace(0, len(noisy) - 1, min(STRIP_COLUMNS, len(noisy))).round().long()
        write_png(folder / "denoising" / f"{name}.png", image_grid(torch.cat((noisy[columns], guess[columns])), len(columns)))
        frames = torch.cat((noisy, guess), dim=3)  # (T, C, H, 2 W)
        write_gif(folder / "denoising" / f"{name}.gif", torch.cat((frames, frames[-1:].expand(HOLD_FRAMES, -1, -1, -1))))
    lines = [f"denoising/: x_t and the network's estimate of the picture, {sampling.steps} steps, as GIF and strip"]
    if store is None:
        return [*lines, "no denoising_path.png: the run has no latents.safetensors"]
    scaled = (model.scaled(z.to(model.device)).cpu() for z in (store.latents, x_t.flatten(0, 1)))
    points, path_points = (z.flatten(1) for z in scaled)
    mean, directions = principal_plane(points)
    on_map = ((path_points - mean) @ directions.T).unflatten(0, x_t.shape[:2])  # (N, T, 2)
    titles = [f"{label} {names[label]}" if label != NO_CLASS else "sample" for label in labels.tolist()]
    draw_paths(
        folder / "denoising_path.png",
        (points - mean) @ directions.T,
        store.labels,
        dict(zip(zip(labels.tolist(), titles, strict=True), on_map, strict=True)),
        f"From noise to sample, over {len(points):,} training latents",
    )
    return [*lines, "denoising_path.png: the same paths on the principal plane of the training latents"]


def file_name(seed: int, label: int, names: Sequence[str]) -> str:
    """Return seed and class for a file name, with letters, digits and underscores only.

    >>> file_name(0, 1, ["daisy", "colt's ../foot"])
    'seed0_class001_colts_foot'
    """
    if label == NO_CLASS:
        return f"seed{seed}"
    slug = "_".join(re.findall(r"\w+", names[label].replace("'", "")))
    slug = slug.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return f"seed{seed}_class{label:03d}_{slug}"


@torch.inference_mode()
def _decode(model: LatentDDPMModule, z: Tensor) -> Tensor:
    return torch.cat([model.decode(part.to(model.device)).cpu() for part in z.split(16)])
