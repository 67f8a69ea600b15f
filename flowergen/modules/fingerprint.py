"""A hash of a network's weights."""

import hashlib

from torch import nn


def fingerprint(net: nn.Module) -> str:
    """Hash the names, shapes, dtypes and values of a network's state, on any device, to 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
