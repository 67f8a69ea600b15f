"""Batch types yielded by the data loaders."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch of pictures.

    Attributes:
        image: (N, C, H, W); uint8 as loaded, float32 in [0, 1] on the device.
        label: (N,) int64 class, -1 if unlabelled.
        index: (N,) int64 row of the picture in the cached array of the whole collection.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which is not needed


class LatentBatch(NamedTuple):
    """One batch of posteriors q(z|x) of pictures encoded in advance by an autoencoder.

    Attributes:
        mean: (N, F, C, h, w) as loaded, of the picture and, if F = 2, of its mirror image; (N, C, h, w), one of the two, on
            the device.
        logvar: log variance, shaped like ``mean``.
        label: (N,) int64 class, -1 if unlabelled.
        index: (N,) int64 row of the picture in the cached array of the whole collection.
        features: (N, F, K, h', w') float16 as loaded, features of a frozen network for ``model.alignment_weight``; K = 0
            without it. (N, K, h', w') on the device.
    """

    mean: Tensor
    logvar: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]
    features: Tensor
