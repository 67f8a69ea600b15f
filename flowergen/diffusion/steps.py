"""What every sampler takes and gives."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from flowergen.diffusion.schedule import Level

Predict = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
Noise = Callable[[int], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]
Sampler = Callable[[Predict, Tensor, Sequence[Level], Noise], Steps]


def last_of(steps: Steps, x: Tensor) -> Tensor:
    """Return the sample: x after the last step, or the given x if there is no step."""
    for after, _ in steps:
        x = after
    return x
