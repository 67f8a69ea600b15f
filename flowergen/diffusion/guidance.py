"""Classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (N, C, h, w), t (N,), label (N,) -> (N, C, h, w)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional); scale 1 is the conditional answer itself.

    Source: Ho & Salimans 2022, arXiv:2207.12598, equation 6, with scale = 1 + w.
    """
    return unconditional + scale * (conditional - unconditional)


def guided_prediction(
    network: Network,
    x: Tensor,
    t: float,
    label: Tensor,
    null_label: int,
    scale: float,
    interval: tuple[float, float],
    num_timesteps: int,
) -> Tensor:
    """The network's guided answer, conditional and unconditional half in one batch.

    Guidance is on at times within the interval only (Kynkäänniemi et al. 2024, arXiv:2404.07724): where there is most noise it
    costs variety, and where there is least it does nothing. Outside of it and at scale 1 the conditional half alone is
    computed.

    Args:
        network: the denoiser.
        x: (N, C, h, w).
        t: time of all of them.
        label: (N,) int64; ``null_label`` for no class.
        null_label: the label that stands for no class.
        scale: 1 for no guidance.
        interval: lowest and highest t / T with guidance.
        num_timesteps: T.

    Returns:
        (N, C, h, w).
    """
    on = interval[0] <= t / num_timesteps <= interval[1]
    if scale == 1 or not on:
        return network(x, torch.full((len(x),), t, device=x.device), label)
    both = network(
        torch.cat((x, x)), torch.full((2 * len(x),), t, device=x.device), torch.cat((label, torch.full_like(label, null_label)))
    )  # (2 N, C, h, w)
    conditional, unconditional = both.chunk(2)
    return guided(conditional, unconditional, scale)
