"""Reconstruction quality of autoencoders of any family on held-out pictures, from ``encode`` and ``decode`` alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from flowergen.data.progress_bar import with_progress_bar
from flowergen.evaluation.encoding import batch_of
from flowergen.evaluation.pictures import PictureSet, to_uint8
from flowergen.losses.kl import kl_standard_normal
from flowergen.modules.image_model import ImageModel
from flowergen.modules.pretrained_weights import load_lpips, vgg16_path
from flowergen.modules.reconstruction_scores import ReconstructionScores
from flowergen.modules.running_means import RunningMeans
from flowergen.randomness import normal_per_sample


@torch.inference_mode()
def reconstruction_scores(model: ImageModel, pictures: PictureSet, weights_dir: str, seed: int) -> dict[str, float]:
    """Compute PSNR, SSIM, LPIPS, sharpness, active units, and the common ELBO with its two parts.

    The ELBO is the Gaussian one with a shared optimal sigma and beta 1 (``losses.reconstruction.gaussian_elbo``);
    ELBO = -distortion - rate, with the rate KL(q(z|x) || N(0, I)) (Alemi et al. 2018, arXiv:1711.00464).

    Args:
        model: an autoencoder in eval mode.
        pictures: held-out pictures.
        weights_dir: directory of VGG-16 for LPIPS, which is left out if the weights are missing.
        seed: random seed for the draws z ~ q(z|x); the draw of picture i depends only on (seed, i).

    Returns:
        Means over the pictures by name, dB for ``psnr``, nats per picture for ``elbo``, ``rate`` and ``distortion``.
    """
    means, scores = RunningMeans(), ReconstructionScores(model.picture_shape).to(model.device)
    lpips = load_lpips(weights_dir).to(model.device) if vgg16_path(weights_dir).is_file() else None
    starts = range(0, len(pictures), batch_of(model.picture_shape))
    for first in with_progress_bar("reconstructing", starts, len(starts)):
        x = _float(pictures, first, model)
        posterior = model.encode(x)
        index = pictures.rows[first : first + len(x)].tolist()
        eps = normal_per_sample(index, model.latent_shape, seed=seed, purpose="validation").to(model.device)
        x_hat, x_mean = model.decode(posterior.sample(eps)), model.decode(posterior.mean)
        values = scores(x, x_hat, x_mean, posterior.mean) | {"loss_kl": kl_standard_normal(posterior.mean, posterior.logvar)}
        if lpips is not None:
            in_colour = (images.expand(-1, 3, -1, -1) * 2 - 1 for images in (x_mean, x))
            values["lpips"] = lpips(*in_colour).flatten()
        means.update(values)
    found = scores.summarise(means.compute())
    rate = found.pop("loss_kl")
    return found | {"rate": rate, "distortion": -found["elbo"] - rate}


@torch.inference_mode()
def reconstructions(model: ImageModel, pictures: PictureSet, first: int) -> Iterator[np.ndarray]:
    """Yield the decoded posterior means of pictures from position ``first`` on, (n, C, H, W) uint8.

    The model is an autoencoder in eval mode.
    """
    for start in range(first, len(pictures), batch_of(model.picture_shape)):
        yield to_uint8(model.decode(model.encode(_float(pictures, start, model)).mean).cpu())


def _float(pictures: PictureSet, first: int, model: ImageModel) -> Tensor:
    stop = min(first + batch_of(model.picture_shape), len(pictures))
    return torch.from_numpy(pictures.at(range(first, stop))).to(model.device).float().div_(255)
