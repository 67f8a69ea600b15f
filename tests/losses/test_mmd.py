import math

import pytest
import torch

from flowergen.losses.mmd import SCALES, mmd_imq


def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
    squared = sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True))
    return sum(2 * len(a) * s / (2 * len(a) * s + squared) for s in SCALES)


def test_it_is_the_unbiased_estimate_of_gretton_et_al() -> None:
    """Equation 3 of JMLR 13, term by term in float64."""
    torch.manual_seed(0)
    z, w = torch.randn(5, 3, 1, 1) * 2 + 1, torch.randn(4, 3, 1, 1)
    a, b = z.flatten(1), w.flatten(1)
    within = [
        math.fsum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    between = math.fsum(kernel(u, v) for u in a for v in b) / (len(a) * len(b))
    assert mmd_imq(z, w).item() == pytest.approx(sum(within) - 2 * between, abs=1e-5)


def test_it_is_zero_on_average_for_two_draws_from_the_prior_and_grows_with_the_distance() -> None:
    torch.manual_seed(0)
    draws = torch.stack([mmd_imq(torch.randn(32, 8), torch.randn(32, 8)) for _ in range(400)])
    assert abs(draws.mean()) < 4 * draws.std() / math.sqrt(len(draws))
    values = [mmd_imq(torch.randn(64, 8) + shift, torch.randn(64, 8)).item() for shift in (0.3, 1.0, 3.0)]
    assert 0 < values[0] < values[1] < values[2] < 2 * len(SCALES)


def test_its_gradient_pulls_towards_the_prior_and_is_finite_for_equal_latents() -> None:
    torch.manual_seed(0)
    z = (torch.zeros(16, 4) + 2).requires_grad_()
    mmd_imq(z, torch.randn(16, 4)).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (z.grad > 0).all()
    assert torch.isfinite(mmd_imq(torch.randn(1, 4), torch.randn(1, 4)))
