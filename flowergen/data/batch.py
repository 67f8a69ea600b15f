"""What a data loader yields."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch of pictures.

    Attributes:
        image: (N, 3, H, W); uint8 as loaded, float32 in [0, 1] once it is on the device.
        label: (N,) int64 class, -1 where unlabelled.
        index: (N,) int64 row of the picture in the cached array of the whole collection.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple's own method of that name is of no use here


class LatentBatch(NamedTuple):
    """One batch of posteriors q(z|x), of pictures that an autoencoder has encoded before.

    Attributes:
        mean: (N, F, C, h, w) as loaded, of the picture and, where F = 2, of its mirror image; (N, C, h, w), one of the two,
            once it is on the device.
        logvar: likewise.
        label: (N,) int64 class, -1 where unlabelled.
        index: (N,) int64 row of the picture in the cached array of the whole collection.
        features: (N, F, K, h', w') float16 as loaded, of a frozen network, for ``model.alignment_weight``; K = 0 without it. On
            the device (N, K, h', w').
    """

    mean: Tensor
    logvar: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]
    features: Tensor
