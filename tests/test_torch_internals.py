"""Each of PyTorch's undocumented parts that we use, by what it does, so that a failure names the one that has moved."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowergen import torch_internals


class Mine(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch_internals.with_plain_tensors(func, args, kwargs or {})


def test_tensors_of_a_subclass_are_computed_with_as_plain_ones() -> None:
    """``torch._C.DisableTorchFunctionSubclass``; also in lists, and for results that are tuples."""
    x = torch.arange(4.0)
    mine = x.as_subclass(Mine)
    assert type(mine) is Mine
    for result in (mine + 1, torch.cat([mine, x]), *mine.split(2)):
        assert type(result) is Tensor
    torch.testing.assert_close(mine + 1, x + 1)


def test_errors_of_the_compiler_are_known() -> None:
    """The packages ``torch._dynamo`` and ``torch._inductor``, in which the exceptions of torch.compile are defined."""
    from torch._inductor.exc import InvalidCxxCompiler

    def fails(*args: Any) -> Any:
        raise ValueError("no")

    layer = nn.Linear(2, 2)
    layer.compile(backend=fails)
    with pytest.raises(RuntimeError) as raised:
        layer(torch.ones(1, 2))
    assert torch_internals.is_compiler_error(raised.value)
    assert torch_internals.is_compiler_error(InvalidCxxCompiler())
    assert not torch_internals.is_compiler_error(ValueError("no"))
