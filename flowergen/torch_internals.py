"""Our uses of undocumented internals of PyTorch 2. tests/test_torch_internals.py detects changes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

COMPILER = ("torch._dynamo", "torch._inductor")  # packages of torch.compile, which define its exceptions


def with_plain_tensors(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function of torch so that instances of tensor subclasses are computed with, and returned, as plain tensors."""
    import torch  # not at the top, so that phase 1 of ``train`` does not import it

    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def is_compiler_error(error: BaseException) -> bool:
    """Return True for an exception that torch.compile defines."""
    return type(error).__module__.startswith(COMPILER)
