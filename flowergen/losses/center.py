"""Losses that give the classes places of their own in a latent space."""

import torch
import torch.nn.functional as F
from torch import Tensor


def center_pull(p: Tensor, centers: Tensor, label: Tensor) -> Tensor:
    """1/2 ||p - c_y||^2: the centre loss (Wen et al. 2016, 10.1007/978-3-319-46478-7_31, equation 2).

    Its gradient moves the latent and the centre towards each other.

    Args:
        p: (N, C) pooled latent means.
        centers: (K, C).
        label: (N,) int64, -1 where unlabelled.

    Returns:
        (N,) float32; 0 where unlabelled.
    """
    own = centers.float()[label.clamp_min(0)]  # (N, C)
    return 0.5 * (p.float() - own).square().sum(1) * (label >= 0)  # (N,)


def center_push(centers: Tensor, margin: float) -> Tensor:
    """Mean over pairs of classes of max(0, margin - ||c_j - c_k||)^2: far enough apart is enough.

    The hinge on distances of De Brabandere et al. 2017 (arXiv:1708.02551, equation 2), with 2 delta_d = margin.

    Args:
        centers: (K, C).
        margin: hinge margin between class centres, a Euclidean distance.

    Returns:
        () float32; 0 for a single class.
    """
    centers = centers.float()
    num = len(centers)
    rows, columns = torch.triu_indices(num, num, offset=1, device=centers.device)
    difference = centers[rows] - centers[columns]  # (K (K - 1) / 2, C)
    distance = (difference.square().sum(1) + 1e-12).sqrt()  # the root of 0 has no gradient
    return F.relu(margin - distance).square().sum() / max(1, len(distance))  # ()


def class_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p(y|z), softmax over the classes.

    Args:
        logits: (N, K).
        label: (N,) int64, -1 where unlabelled.

    Returns:
        (N,) float32 in nats; 0 where unlabelled.
    """
    return F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="none")  # (N,)
