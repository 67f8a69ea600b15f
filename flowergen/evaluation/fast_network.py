"""A denoiser for many samples."""

import logging

import torch
from torch import Tensor, nn

from flowergen.errors import one_line

log = logging.getLogger(__name__)


class FastNetwork:
    """Evaluates a denoiser in bf16, compiled, or both.

    A batch smaller than the largest one so far, such as the last one, is evaluated without compilation, because
    recompiling takes longer than a few batches.

    Args:
        net: the denoiser.
        bf16: evaluate it under bf16 autocast.
        compiled: compile it, if a compiler is available.
        cuda_graphs: if it is compiled, replay it as a CUDA graph.
    """

    def __init__(self, net: nn.Module, bf16: bool, compiled: bool, cuda_graphs: bool = False):
        self.net, self.bf16, self.cuda_graphs = net, bf16, cuda_graphs
        self._compiled = torch.compile(net, mode="reduce-overhead" if cuda_graphs else "default") if compiled else None
        self._rows = 0  # size of the largest batch so far

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x_t (N, C, h, w), t (N,), label (N,) -> (N, C, h, w) float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self._output(x, t, label).float()

    def _output(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if self._compiled is not None and len(x) >= self._rows:
            try:
                if self.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                output = self._compiled(x, t, label)
                if self.cuda_graphs:
                    output = output.clone()  # the next replay overwrites it, and samplers keep earlier predictions
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # torch raises various exceptions without a C++ compiler
                if self._rows:
                    raise
                log.warning(f"the denoiser is not compiled ({one_line(error)[:120]})")
                self._compiled = None
            else:
                self._rows = len(x)
                return output
        return self.net(x, t, label)
