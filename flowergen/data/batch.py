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
