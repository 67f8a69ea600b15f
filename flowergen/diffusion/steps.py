"""What every sampler takes and gives."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from flowergen.diffusion.schedule import Level

Predict = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
Noise = Callable[[int], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]
Sampler = Callable[[Predict, Tensor, Sequence[Level], Noise], Steps]
