"""A denoiser for many samples."""

import logging

import torch
from torch import Tensor, nn

from flowergen.errors import one_line

log = logging.getLogger(__name__)


class FastNetwork:
    """Evaluates a denoiser in bf16, compiled, or both.

    Only batches of the shape of the first one are evaluated by the compiled network: to compile it again takes longer than a
    few batches do.

    Args:
        net: the denoiser.
        bf16: evaluate it under bf16 autocast.
        compiled: compile it, if that is possible here.
    """

    def __init__(self, net: nn.Module, bf16: bool, compiled: bool):
        self.net, self.bf16 = net, bf16
        self._compiled = torch.compile(net) if compiled else None
        self._shape: torch.Size | None = None

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x_t (N, C, h, w), t (N,), label (N,) -> (N, C, h, w) float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self._output(x, t, label).float()

    def _output(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if self._compiled is None or self._shape not in (None, x.shape):
            return self.net(x, t, label)
        try:
            output = self._compiled(x, t, label)
        except Exception as error:  # without a C++ compiler, torch raises one of many
            if self._shape is not None:
                raise
            log.warning(f"the denoiser is not compiled ({one_line(error)[:120]})")
            self._compiled = None
            return self.net(x, t, label)
        self._shape = x.shape
        return output
