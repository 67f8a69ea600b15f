"""Noise that is a function of (seed, step, purpose) only.

No draw reads global state, so a result does not depend on earlier draws, the number of devices, gradient accumulation or
resuming. The generators are numpy's, whose keys are 128 bits wide: torch's CPU generator keeps only the low 32 bits of a
seed, and among 50,000 hashed seeds two would then be equal in one run out of four. numpy is already a dependency of
torchvision.

The streams are counter-based (Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

On an NVIDIA GPU, training noise is drawn on the GPU: torch's CUDA generator is Philox as well and keeps all 64 bits of a seed,
here a hash of the key. The numbers differ from the CPU's, and may differ between kinds of GPU. Samples are therefore always
drawn from numpy's streams, and are the same on every machine.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")
OWN_NOISE_DEVICES = ("cuda",)  # kinds of device


def generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """Return a new generator for one draw.

    Args:
        seed: of the run or the command, in [0, 2^64).
        step: optimiser step, epoch or sample number, in [0, 2^64).
        purpose: name of the use ("posterior", "order", ...): two purposes never share a stream.

    Returns:
        A Philox generator at the start of its stream.

    Raises:
        struct.error: seed or step is negative or does not fit into 64 bits.
    """
    # The fields have fixed widths because SeedSequence joins the words of integers: (2^32 + 1, 1) would equal (1, 2^32 + 1).
    key = struct.pack("<QQ", seed, step) + blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(np.frombuffer(key, "<u4").tolist())))


def noise_of(device: torch.device) -> str:
    """Return the kind of device whose streams are used for training noise: the device's own if it has them, else "cpu"."""
    return device.type if device.type in OWN_NOISE_DEVICES else "cpu"


def device_generator(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """Return a new torch generator on the device for one draw.

    Args:
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: one whose generator keeps 64 bits of a seed.
    """
    key = blake2b(struct.pack("<QQ", seed, step) + purpose.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little"))


def normal(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """Draw standard normal noise for the whole global batch; the caller slices its own rows by position.

    Args:
        shape: of the noise, the global batch first.
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: where it is needed. On an NVIDIA GPU it is drawn there, without a copy.

    Returns:
        (*shape) float32 on the device.
    """
    if device.type in OWN_NOISE_DEVICES:
        return torch.randn(tuple(shape), generator=device_generator(seed, step, purpose, device), device=device)
    eps = generator(seed, step, purpose).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(eps).to(device)  # (*shape)


def uniform(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """Draw uniform noise in [0, 1), as `normal` does.

    Args:
        shape: of the noise, the global batch first.
        seed: see `generator`.
        step: see `generator`.
        purpose: see `generator`.
        device: see `normal`.

    Returns:
        (*shape) float32 on the device.
    """
    if device.type in OWN_NOISE_DEVICES:
        return torch.rand(tuple(shape), generator=device_generator(seed, step, purpose, device), device=device)
    return torch.from_numpy(generator(seed, step, purpose).random(tuple(shape), dtype=np.float32)).to(device)  # (*shape)


def stratified(shape: Sequence[int], *, seed: int, step: int, purpose: str, device: torch.device = CPU) -> Tensor:
    """Draw u_i = (u_0 + i / N) mod 1 with uniform u_0: each of the N rows is uniform, and together they are evenly spaced.

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
    """Draw standard normal noise whose row k depends only on sample number `indices[k]`, not on the other samples.

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
    """Let layers draw their initial weights from a separate stream, and restore torch's global state afterwards.

    torch's layers can draw only from the global generator.

    Args:
        seed: see `generator`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, 0, "initialisation").integers(2**63)))
        yield
