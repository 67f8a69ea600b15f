import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flowergen.nn.latent_space import nats_per_unit, slerp, traverse
from flowergen.nn.posterior import Posterior


def test_slerp_walks_the_great_circle_at_an_even_pace() -> None:
    """Between unit vectors at 60 degrees: on the sphere, equal angles, the ends exact."""
    a = torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1)
    b = torch.tensor([0.5, math.sqrt(0.75), 0, 0]).view(4, 1, 1)
    walk = slerp(a, b, torch.linspace(0, 1, 7))
    assert walk.shape == (7, 4, 1, 1)
    angles = torch.atan2(walk[:, 1, 0, 0], walk[:, 0, 0, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 3, 7))
    torch.testing.assert_close(walk.flatten(1).norm(dim=1), torch.ones(7))


def test_slerp_keeps_the_length_of_a_draw_from_the_prior_where_a_straight_line_does_not() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 1, 1)
    middle = slerp(a, b, torch.tensor([0.5]))[0]
    assert middle.norm() == pytest.approx(math.sqrt(512), rel=0.05)
    assert ((a + b) / 2).norm() < 0.8 * math.sqrt(512)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0, -1.0])
def test_slerp_is_a_straight_line_where_there_is_no_single_great_circle(factor: float) -> None:
    """Equal, parallel, zero and opposite latents."""
    a = torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1)
    walk = slerp(a, factor * a, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(walk, torch.stack([a, a * (0.75 + 0.25 * factor), factor * a]))


def test_nats_of_a_unit_are_its_kl() -> None:
    torch.manual_seed(0)
    posterior = Posterior(torch.randn(5, 2, 3, 1), torch.randn(5, 2, 3, 1))
    kl = kl_divergence(Normal(posterior.mean.double(), (posterior.logvar.double() / 2).exp()), Normal(0.0, 1.0))
    np.testing.assert_allclose(nats_per_unit(posterior), kl.flatten(1).mean(0), rtol=1e-5)


def test_a_traversal_changes_one_unit_alone() -> None:
    z = torch.arange(6.0).view(2, 3, 1)
    walk = traverse(z, 4, torch.tensor([-3.0, 3.0]))
    assert walk.shape == (2, 2, 3, 1)
    assert walk[:, 1, 1, 0].tolist() == [-3, 3]
    walk[:, 1, 1, 0] = 4
    torch.testing.assert_close(walk, z.expand(2, -1, -1, -1))
