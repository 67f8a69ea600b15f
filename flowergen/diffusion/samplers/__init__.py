"""Samplers: each goes from noise to x_0 over given levels, and hands out every step on the way.

All have one signature, ``sampler(predict, x, levels, noise)``:

* ``predict(x, level)`` gives x0_hat and eps_hat, each (N, C, h, w);
* ``x`` is (N, C, h, w) noise at ``levels[0]``;
* ``levels`` go from the noisiest to ``CLEAN``;
* ``noise(k)`` gives fresh (N, C, h, w) noise for step k;

and yield (x after the step, x0_hat before it) once for each step.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from flowergen.diffusion.schedule import Level

Predict = Callable[[Tensor, Level], tuple[Tensor, Tensor]]
Noise = Callable[[int], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]
Sampler = Callable[[Predict, Tensor, Sequence[Level], Noise], Steps]
