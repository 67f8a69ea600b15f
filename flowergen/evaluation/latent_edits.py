"""Reconstructions and variations of given pictures, and paths through latent space, as files.

Every function takes an autoencoder in eval mode and pictures (N, C, H, W) in [0, 1], writes into a folder, and returns lines
for the user. A picture's files do not depend on the other pictures, except for an automatically chosen scale and the choice of
traversed dimensions, which are shared by all pictures.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from flowergen.data.progress_bar import with_progress_bar
from flowergen.errors import UserError
from flowergen.metrics.reconstruction import psnr, ssim
from flowergen.modules.image_model import ImageModel
from flowergen.nn.latent_space import nats_per_unit, slerp, traverse
from flowergen.nn.posterior import Posterior
from flowergen.randomness import normal_per_sample
from flowergen.viz.animations import write_gif
from flowergen.viz.grids import comparison_grid, image_grid, write_png

BATCH = 64  # pictures encoded or decoded at a time
VISIBLE_DIFFERENCE = 1 / 255  # mean pixel difference below which a variation is invisible: one grey level
AUTO_DIFFERENCE = 8 / 255  # mean pixel difference that scale=auto aims at
MAX_SCALE = 1e8  # large enough even for a posterior of standard deviation 1e-4
TRAVERSAL_SIGMAS = 3.0  # standard deviations of the prior to each side, as in Higgins et al. 2017, figure 1
MAX_STRENGTH = 2.0  # largest strength of latent arithmetic; 1 adds the difference of the means itself


def reconstruct(model: ImageModel, x: Tensor, names: Sequence[str], folder: Path) -> list[str]:
    """Write ``reconstruction.png``, real above reconstructed, and the single reconstructions."""
    x_hat = decode(model, encode(model, x).mean)
    write_png(folder / "reconstruction.png", comparison_grid(x, x_hat, columns=8))
    for name, image in zip(names, x_hat, strict=True):
        write_single(folder / f"{name}_reconstruction.png", image)
    return [f"{len(x)} pictures: PSNR {psnr(x_hat, x).mean():.2f} dB, SSIM {ssim(x_hat, x).mean():.3f}"]


def vary(
    model: ImageModel, x: Tensor, names: Sequence[str], folder: Path, num: int, scale: float | None, seed: int
) -> list[str]:
    """Write ``variations`` as ``variations.png``, a row or block per picture, and the single pictures."""
    x_hat, varied, scale = variations(model, x, num, scale, seed)
    rows = torch.cat((x[:, None], x_hat[:, None], varied), dim=1)  # (N, 2 + num, C, H, W)
    columns = round((1.5 * (num + 2)) ** 0.5) if len(x) == 1 else num + 2
    write_png(folder / "variations.png", image_grid(rows.flatten(0, 1), columns))
    kinds = ["original", "reconstruction", *(f"variation_{j + 1:02d}" for j in range(num))]
    for name, images in zip(names, rows, strict=True):
        for kind, image in zip(kinds, images, strict=True):
            write_single(folder / f"{name}_{kind}.png", image)
    difference = (varied - x_hat[:, None]).abs().mean().item()
    lines = [f"scale {scale:.4g}: variations differ from the reconstruction by {255 * difference:.2f} grey levels on average"]
    if difference < VISIBLE_DIFFERENCE:
        lines.append("that is invisible: give scale=auto, which finds a visible one, or a larger scale=")
    return lines


def interpolate(model: ImageModel, x: Tensor, folder: Path, num: int) -> list[str]:
    """Write ``interpolation.png``, a row per pair of consecutive pictures, and ``interpolation.gif`` through all and back."""
    paths = interpolations(model, x, num)
    rows = [torch.cat((x[i, None], path, x[i + 1, None])) for i, path in enumerate(paths)]
    write_png(folder / "interpolation.png", image_grid(torch.cat(rows), columns=num + 2))
    forward = torch.cat(paths)
    write_gif(folder / "interpolation.gif", torch.cat((forward, forward.flip(0)[1:-1])) if len(forward) > 2 else forward)
    return [f"{len(paths)} walks of {num} steps, real pictures at both ends of each row"]


def traversals(model: ImageModel, x: Tensor, names: Sequence[str], folder: Path, num: int, num_dims: int) -> list[str]:
    """Write ``NAME_traversal.png``: a row for each of the ``num_dims`` dimensions with the largest KL."""
    posterior = encode(model, x)
    nats, units = nats_per_unit(posterior).sort(descending=True)
    units = units[:num_dims]
    values = torch.linspace(-TRAVERSAL_SIGMAS, TRAVERSAL_SIGMAS, num)
    for name, mean in with_progress_bar("decoding", zip(names, posterior.mean, strict=True), len(x)):
        paths = torch.cat([traverse(mean, int(unit), values) for unit in units])
        write_png(folder / f"{name}_traversal.png", image_grid(decode(model, paths), columns=num))
    rows = ", ".join(f"{unit} ({value:.2f})" for unit, value in zip(units.tolist(), nats.tolist(), strict=False))
    return [f"rows: latent dimension (nats) {rows}", f"columns: from -{TRAVERSAL_SIGMAS:g} to {TRAVERSAL_SIGMAS:g}"]


def arithmetic(model: ImageModel, x: Tensor, names: Sequence[str], folder: Path, num: int, direction: Tensor) -> list[str]:
    """Write ``NAME_arithmetic.png`` and ``arithmetic.png``: original, reconstruction, then z = mu + s direction for rising s.

    There are ``num`` steps of s; ``direction`` (C, h, w) is the mean latent of one class minus that of another.
    """
    mean = encode(model, x).mean
    strengths = torch.linspace(MAX_STRENGTH / num, MAX_STRENGTH, num)
    rows = []
    for name, image, z in with_progress_bar("decoding", zip(names, x, mean, strict=True), len(x)):
        moved = decode(model, torch.cat((z[None], z + strengths.to(z).view(-1, 1, 1, 1) * direction)))
        rows.append(torch.cat((image[None], moved)))
        write_png(folder / f"{name}_arithmetic.png", image_grid(rows[-1], columns=num + 2))
    write_png(folder / "arithmetic.png", image_grid(torch.cat(rows), columns=num + 2))
    shown = ", ".join(f"{strength:.2g}" for strength in strengths.tolist())
    return [f"columns: original, reconstruction, the difference of the class means added {shown} times"]


# ---- The autoencoder, batch by batch -----------------------------------------------------------------------------------
@torch.inference_mode()
def encode(model: ImageModel, x: Tensor) -> Posterior:
    """Encode (N, C, H, W) in [0, 1] on any device to mean and logvar (N, C, h, w) on the CPU."""
    posteriors = [model.encode(part.to(model.device)) for part in x.split(BATCH)]
    return Posterior(*(torch.cat(moments).cpu() for moments in zip(*posteriors, strict=True)))


@torch.inference_mode()
def decode(model: ImageModel, z: Tensor, bar: bool = False) -> Tensor:
    """Decode (N, C, h, w) on any device to (N, C, H, W) in [0, 1] on the CPU, with a progress bar if they are many."""
    parts = z.split(BATCH)
    shown = with_progress_bar("decoding", parts, len(z), size=len) if bar and len(parts) > 1 else parts
    return torch.cat([model.decode(part.to(model.device)).cpu() for part in shown])


def variations(model: ImageModel, x: Tensor, num: int, scale: float | None, seed: int) -> tuple[Tensor, Tensor, float]:
    """Decode z = mu + sqrt(scale) sigma eps, with the same noise for variation j of every picture.

    Args:
        model: an autoencoder in eval mode.
        x: (N, C, H, W) in [0, 1].
        num: variations per picture.
        scale: factor on the posterior's variance; None to find one with a visible effect.
        seed: random seed for the noise.

    Returns:
        The reconstructions (N, C, H, W), the variations (N, num, C, H, W), both in [0, 1], and the scale.

    Raises:
        UserError: no scale has a visible effect, because the decoder ignores its latents.
    """
    posterior = encode(model, x)
    eps = normal_per_sample(range(num), posterior.mean.shape[1:], seed=seed, purpose="variation").to(posterior.mean)
    x_hat = decode(model, posterior.mean)
    if scale is None:
        scale = _visible_scale(model, posterior, x_hat, eps)
    return x_hat, _decode_variations(model, posterior, scale, eps), scale


def interpolations(model: ImageModel, x: Tensor, num: int) -> list[Tensor]:
    """Decode ``num`` steps from the latent of each picture to that of the next, (num, C, H, W) in [0, 1] for each pair.

    Raises:
        UserError: there is only one picture.
    """
    if len(x) < 2:
        raise UserError("an interpolation goes from one picture to the next: give two pictures or more, such as image=DIR")
    mean, t = encode(model, x).mean, torch.linspace(0, 1, num)
    return [decode(model, slerp(a, b, t)) for a, b in with_progress_bar("decoding", pairwise(mean), len(mean) - 1)]


def _decode_variations(model: ImageModel, posterior: Posterior, scale: float, eps: Tensor) -> Tensor:
    """Return (N, V, C, H, W) in [0, 1] for posteriors (N, C, h, w) and noise (V, C, h, w)."""
    sigma = (posterior.logvar / 2).exp()
    z = posterior.mean[:, None] + scale**0.5 * sigma[:, None] * eps  # (N, V, C, h, w)
    return decode(model, z.flatten(0, 1), bar=True).unflatten(0, z.shape[:2])


def _visible_scale(model: ImageModel, posterior: Posterior, x_hat: Tensor, eps: Tensor) -> float:
    """Find the scale at which variations differ from the reconstructions by about eight grey levels on average."""

    def is_visible(scale: float) -> bool:
        return bool((_decode_variations(model, posterior, scale, eps) - x_hat[:, None]).abs().mean() >= AUTO_DIFFERENCE)

    low, high = 0.0, 0.01
    while not is_visible(high):
        low, high = high, 4 * high
        if high > MAX_SCALE:
            raise UserError(
                f"scale=auto: even scale={low:.0e} changes less than {255 * AUTO_DIFFERENCE:.0f} grey levels, so the decoder "
                "ignores its latents (posterior collapse): train with a lower model.beta or a longer model.beta_warmup_steps"
            )
    for _ in range(6):  # to within a few percent
        middle = (low + high) / 2
        low, high = (low, middle) if is_visible(middle) else (middle, high)
    return high


def write_single(path: Path, image: Tensor) -> None:
    """Write a picture (C, H, W) in [0, 1]; a grey one stays grey."""
    write_png(path, image_grid(image[None], columns=1)[..., : len(image)])
