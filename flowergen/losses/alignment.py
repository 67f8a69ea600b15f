"""Alignment of a denoiser's hidden features with those of a picture."""

import torch.nn.functional as F
from torch import Tensor


def alignment_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """1 - the cosine of the angle between both at each position, averaged over the positions.

    Source: REPA (Yu et al. 2024, arXiv:2410.06940), its loss L_REPA but for the constant.

    Args:
        predicted: from the hidden features of a noisy latent, (N, K, h, w).
        features: of the picture without noise, alike.

    Returns:
        (N,) float32, from 0 to 2.
    """
    return 1 - F.cosine_similarity(predicted.float(), features.float(), dim=1).flatten(1).mean(1)
