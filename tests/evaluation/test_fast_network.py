"""The denoiser for many samples."""

import pytest
import torch
from torch import Tensor

from flowergen.evaluation.fast_network import FastNetwork
from tests.tiny_models import diffusion


class Halving(torch.nn.Module):
    """Returns what its layer does, in bf16 under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.layer(x)


def _batch(num: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(num)
    return torch.randn(num, 2, 4, 4, generator=g), torch.full((num,), 300.0), torch.arange(num) % 3


@torch.inference_mode()
def test_compiled_it_is_the_same_but_for_rounding_and_smaller_batches_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    net = diffusion().inference_net
    compile_, shapes = torch.compile, list[int]()

    def counted(network: torch.nn.Module, mode: str) -> object:
        compiled = compile_(network, mode=mode)

        def call(x: Tensor, *others: Tensor) -> object:
            shapes.append(len(x))
            return compiled(x, *others)

        return call

    monkeypatch.setattr(torch, "compile", counted)
    fast = FastNetwork(net, bf16=False, compiled=True)
    for num in (2, 4, 3, 4):
        torch.testing.assert_close(fast(*_batch(num)), net(*_batch(num)), rtol=1e-3, atol=1e-4)
    assert shapes == [2, 4, 4]


@torch.inference_mode()
def test_an_output_of_a_cuda_graph_outlives_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler whose networks return the same memory at each call, as the replay of a CUDA graph does."""
    net, memory, marks = diffusion().inference_net, torch.empty(4, 2, 4, 4), list[int]()

    def compile_(network: torch.nn.Module, mode: str) -> object:
        assert mode == "reduce-overhead"
        return lambda *inputs: memory.copy_(network(*inputs))

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(len(marks)))
    fast = FastNetwork(net, bf16=False, compiled=True, cuda_graphs=True)
    x, *others = _batch(4)
    outputs = [fast(factor * x, *others) for factor in (1, 2)]
    for factor, output in zip((1, 2), outputs, strict=True):
        torch.testing.assert_close(output, net(factor * x, *others))
    assert marks == [0, 1]


@torch.inference_mode()
def test_in_bf16_it_is_near_and_returns_float32() -> None:
    net = diffusion().inference_net
    exact, rounded = net(*_batch(4)), FastNetwork(net, bf16=True, compiled=False)(*_batch(4))
    assert rounded.dtype == torch.float32
    assert FastNetwork(Halving(), bf16=True, compiled=False)(*_batch(4)).dtype == torch.float32, "of one that returns bf16"
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.05 * exact.std()


@torch.inference_mode()
def test_without_a_compiler_it_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no C++ compiler")

    net = diffusion().inference_net
    monkeypatch.setattr(torch, "compile", lambda _, mode: fails)
    fast = FastNetwork(net, bf16=False, compiled=True)
    assert torch.equal(fast(*_batch(4)), net(*_batch(4)))
    assert torch.equal(fast(*_batch(4)), net(*_batch(4)))
    assert caplog.text.count("the denoiser is not compiled (no C++ compiler)") == 1
