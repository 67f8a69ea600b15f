"""Distances between pictures in the features of a network."""

from collections.abc import Sequence

from torch import Tensor


def feature_distance(features_hat: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the activations, averaged over the layers.

    Source: Larsen et al. 2016 (arXiv:1512.09300, equations 7 and 8) with the discriminator's layers: a Gaussian there, up to
    scale and constant.

    Args:
        features_hat: of the reconstruction, (N, C, h, w) for each layer.
        features: of the picture, alike.

    Returns:
        (N,) float32.
    """
    distances = [(a.float() - b.float()).square().flatten(1).mean(1) for a, b in zip(features_hat, features, strict=True)]
    return sum(distances[1:], distances[0]) / len(distances)  # (N,)


def normalised_feature_distance(features_hat: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Squared distance of the directions of the activations at each position, averaged over positions and layers.

    Source: Zhang et al. 2018 (arXiv:1801.03924, equation 1) with all weights w equal: without the normalisation the deep layers
    of VGG, whose activations are large, would be all that counts.

    Args:
        features_hat: of the reconstruction, (N, C, h, w) for each layer.
        features: of the picture, alike.

    Returns:
        (N,) float32, from 0 to 4; to 2 where no activation is negative.
    """
    distances = [
        (_direction(a) - _direction(b)).square().sum(1).flatten(1).mean(1) for a, b in zip(features_hat, features, strict=True)
    ]
    return sum(distances[1:], distances[0]) / len(distances)  # (N,)


def _direction(a: Tensor) -> Tensor:
    a = a.float()
    return a * (a.square().sum(1, keepdim=True) + 1e-8).rsqrt()  # where nothing is active, the gradient stays bounded
