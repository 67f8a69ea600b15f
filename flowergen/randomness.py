"""Noise that is a function of (seed, step, purpose) and of nothing else.

No draw reads global state, so a result does not depend on what was drawn before it, on the number of devices, on
accumulation or on a resume. The generators are numpy's, whose keys are 128 bits wide: torch's CPU generator keeps only
the low 32 bits of a seed, so that among 50,000 hashed seeds two are equal in one run out of four. numpy is there in any
case, as torchvision depends on it.

The streams are counter-based (Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

On an NVIDIA GPU, training draws there instead: torch's CUDA generator is Philox as well and keeps all 64 bits of a seed, here
a hash of the key. The numbers are others than the CPU's, and may differ between kinds of GPU; samples are therefore always
drawn from numpy's streams, so that they are the same pictures everywhere.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")
DRAW_THEMSELVES = ("cuda",)  # kinds of device


def generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """A fresh generator for one draw.

    Args:
        seed: of the run or the command, in [0, 2^64).
        step: optimiser step, epoch or sample number, in [0, 2^64).
        purpose: what the numbers are for ("posterior", "order", ...): two purposes never share a stream.

    Returns:
        A Philox generator at the start of its stream.

    Raises:
        struct.error: seed or step is negative or does not fit into 64 bits.
    """
    # Fields of fixed width: SeedSequence joins the words of integers, so that (2^32 + 1, 1) would equal (1, 2^32 + 1).
    key = struct.pack("<QQ", seed, step) + blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(np.frombuffer(key, "<u4").tolist())))


def noise_of(device: torch.device) -> str:
    """Which streams training on a device draws from: its own, named by the kind of device, or those of the CPU."""
    return device.type if device.type in DRAW_THEMSELVES else "cpu"


def device_generator(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """A fresh generator of the device's own for one draw.

    Args:
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: one of which the generator keeps 64 bits of a seed.
    """
    key = blake2b(struct.pack("<QQ", seed, step) + purpose.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little"))


def normal(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """Standard normal noise, drawn for the whole global batch: the caller slices its own rows by position.

    Args:
        shape: of the noise, the global batch first.
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: where it is needed. An NVIDIA GPU draws it itself, so that nothing is copied.

    Returns:
        (*shape) float32 on the device.
    """
    if device.type in DRAW_THEMSELVES:
        return torch.randn(tuple(shape), generator=device_generator(seed, step, purpose, device), device=device)
    eps = generator(seed, step, purpose).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(eps).to(device)  # (*shape)


def uniform(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """Uniform noise in [0, 1), drawn as `normal` draws.

    Args:
        shape: of the noise, the global batch first.
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: see `normal`.

    Returns:
        (*shape) float32 on the device.
    """
    if device.type in DRAW_THEMSELVES:
        return torch.rand(tuple(shape), generator=device_generator(seed, step, purpose, device), device=device)
    return torch.from_numpy(generator(seed, step, purpose).random(tuple(shape), dtype=np.float32)).to(device)  # (*shape)


def stratified(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """u_i = (u_0 + i / N) mod 1, u_0 uniform: each of the N rows is uniform, and together they are evenly spread.

    Source: Kingma et al. 2021 (arXiv:2107.00630, appendix I.1), for the times of a batch.

    Args:
        shape: (N,), the global batch.
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: see `normal`.

    Returns:
        (N,) float32 in [0, 1) on the device.
    """
    (num,) = shape
    return (uniform((1,), seed=seed, step=step, purpose=purpose, device=device) + torch.arange(num, device=device) / num) % 1


def normal_per_sample(indices: Sequence[int] | Tensor, shape: Sequence[int], *, seed: int, purpose: str) -> Tensor:
    """Standard normal noise of which row k belongs to sample `indices[k]`, whichever samples stand beside it.

    Sample i is `normal(shape, seed=seed, step=i, purpose=purpose)`.

    Args:
        indices: (N,) sample numbers.
        shape: of one sample.
        seed: see `generator`.
        purpose: see `generator`.

    Returns:
        (N, *shape) float32 on the CPU.
    """
    eps = torch.empty(len(indices), *shape, dtype=torch.float32)  # (N, *shape)
    for row, index in enumerate(torch.as_tensor(indices).tolist()):
        eps[row] = normal(shape, seed=seed, step=index, purpose=purpose)
    return eps


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Within it, layers draw their weights from a stream of their own; torch's global state is as before afterwards.

    torch's layers know no other source than the global generator.

    Args:
        seed: see `generator`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, 0, "initialisation").integers(2**63)))
        yield
