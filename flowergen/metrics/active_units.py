"""Number of active latent dimensions."""

import torch
from torch import Tensor
from torchmetrics import Metric

THRESHOLD = 0.01  # Burda et al. 2016, section 5.2


class ActiveUnits(Metric):
    """The number of latent dimensions u with Var_x(E_q(z|x)[z_u]) > 0.01.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5.2. A dimension whose posterior mean is the same for all pictures
    carries no information about them. Sums are in float32, which every device supports: accurate for means within a few tens
    of the prior's 0.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.sum: Tensor
        self.sum_of_squares: Tensor
        self.num: Tensor
        for name in ("sum", "sum_of_squares", "num"):
            self.add_state(name, torch.zeros(1), dist_reduce_fx="sum")

    def update(self, mean: Tensor) -> None:
        """Add the posterior means of a batch, (N, C, h, w)."""
        flat = mean.detach().float().flatten(1)  # (N, C h w)
        self.sum = self.sum + flat.sum(0)
        self.sum_of_squares = self.sum_of_squares + flat.square().sum(0)
        self.num = self.num + len(flat)

    def compute(self) -> Tensor:
        """Return the number, () float32."""
        variance = self.sum_of_squares / self.num - (self.sum / self.num).square()  # (C h w,)
        return (variance > THRESHOLD).sum().float()
