"""Reconstruction metrics per image."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio -10 log10 MSE of reconstructions and pictures, (N, C, H, W) in [0, 1] each.

    Returns:
        (N,) float32 in dB; infinite if the two are equal.
    """
    return peak_signal_noise_ratio(x_hat.float(), x.float(), data_range=1.0, reduction="none", dim=(1, 2, 3))  # (N,)


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Compute the structural similarity (Wang et al. 2004, 10.1109/TIP.2003.819861), Gaussian window of sigma 1.5 and 11 px.

    The mean over channels and all pixels, with the picture mirrored at its border. Reconstructions and pictures are
    (N, C, H, W) in [0, 1], at least 11 px a side.

    Returns:
        (N,) float32 in [-1, 1], 1 if the two are equal.
    """
    with torch.autocast(x.device.type, enabled=False):  # it uses convolutions, for which steps of 1/256 are too coarse
        scores = structural_similarity_index_measure(x_hat.float(), x.float(), data_range=1.0, reduction="none")
    assert isinstance(scores, Tensor)  # a pair only if full images are requested
    return scores  # (N,)


def gradient_energy(x: Tensor) -> Tensor:
    """Compute the mean squared difference of horizontal and vertical neighbours, a measure of fine structure.

    Pictures are (N, C, H, W) in [0, 1]. The ratio of a reconstruction's value to its picture's measures sharpness: below 1 it
    is blurred, above 1 it has added noise or edges. By Parseval's theorem the value is the mean power over frequencies,
    weighted by 4 sin^2(omega / 2).

    Returns:
        (N,) float32, at least 0.
    """
    x = x.float()
    across, down = x.diff(dim=-1), x.diff(dim=-2)  # (N, C, H, W - 1), (N, C, H - 1, W)
    return (across.square().flatten(1).mean(1) + down.square().flatten(1).mean(1)) / 2  # (N,)
