import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from flowergen.nn.embeddings import FlatAsMap, TimeAndClass, sinusoidal, sinusoidal_2d


@pytest.mark.parametrize("dim", [2, 8, 256])
def test_sinusoids_are_those_of_the_formula(dim: int):
    """cos(t w_i), then sin(t w_i), w_i = 10000^(-i / (D / 2)), number by number in float64."""
    times = [0.0, 0.25, 1.0, 487.0, 999.0]
    expected = np.empty((len(times), dim))
    for row, t in enumerate(times):
        for i in range(dim // 2):
            w = 10_000 ** (-i / (dim // 2))
            expected[row, i], expected[row, dim // 2 + i] = math.cos(t * w), math.sin(t * w)
    out = sinusoidal(torch.tensor(times), dim)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-4)  # an angle of 999 is exact to 3e-5 in float32


@pytest.mark.parametrize("dim", [8, 256])
def test_sinusoids_equal_diffusers(dim: int):
    t = torch.cat((torch.arange(1000).float(), torch.rand(100, generator=torch.Generator().manual_seed(0)) * 1000))
    theirs = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal(t, dim), theirs, rtol=0, atol=2e-4)


def test_sinusoids_take_whole_and_half_precision_times():
    """A long or bfloat16 time is the same time."""
    t = torch.tensor([0, 3, 128])
    for other in (t, t.to(torch.bfloat16)):
        assert torch.equal(sinusoidal(other, 16), sinusoidal(t.float(), 16))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 5), (16, 16)])
def test_no_two_positions_are_embedded_alike(height: int, width: int):
    positions = sinusoidal_2d(height, width, 16)
    assert positions.shape == (height * width, 16)
    if len(positions) > 1:
        assert torch.pdist(positions).min() > 0.1


def test_half_of_a_position_is_its_row_and_half_its_column():
    """In reading order, as a flattened map is."""
    positions = sinusoidal_2d(3, 5, 16).view(3, 5, 16)
    for row in range(3):
        for column in range(5):
            expected = torch.cat((sinusoidal(torch.tensor([row]), 8)[0], sinusoidal(torch.tensor([column]), 8)[0]))
            torch.testing.assert_close(positions[row, column], expected)


def test_time_and_class_add_up():
    """The difference between two classes is the same at all times, and each of the K + 1 has a vector of its own."""
    torch.manual_seed(0)
    embed = TimeAndClass(12, 3)
    t, label = torch.tensor([0.0, 7.0, 999.0]), torch.tensor([0, 1, 3])
    out = embed(t, label)
    assert out.shape == (3, 12)
    torch.testing.assert_close(out, embed(t, torch.zeros(3).long()) + embed.label.weight[label] - embed.label.weight[0])
    assert torch.pdist(embed.label.weight).min() > 0.01
    times = embed(torch.arange(0, 1000, 100).float(), torch.full((10,), 3))
    assert torch.pdist(times).min() > 0.01


def test_classes_start_far_apart():
    """Embeddings are drawn from N(0, 1), so that 102 of 64 dimensions lie sqrt(2 * 64) apart, give or take."""
    torch.manual_seed(0)
    embed = TimeAndClass(64, 102)
    distances = torch.pdist(embed.label.weight)
    assert distances.mean().item() == pytest.approx(128**0.5, rel=0.05)
    assert distances.min() > 6


@pytest.mark.parametrize("num_classes", [0, 3])
def test_there_is_one_label_more_than_classes(num_classes: int):
    """K is "no class", and beyond it there is none."""
    embed = TimeAndClass(8, num_classes)
    assert embed(torch.zeros(1), torch.tensor([num_classes])).shape == (1, 8)
    with pytest.raises(IndexError):
        embed(torch.zeros(1), torch.tensor([num_classes + 1]))


@pytest.mark.parametrize(("dim", "channels"), [(1, 1), (5, 1), (64, 1), (65, 2), (128, 2), (200, 4)])
def test_unfolding_undoes_folding(dim: int, channels: int):
    flat, z = FlatAsMap(dim), torch.randn(3, dim, 1, 1)
    folded = flat.fold(z)
    assert flat.channels == channels
    assert folded.shape == (3, channels, 8, 8)
    assert torch.equal(flat.unfold(folded), z)
    assert folded.count_nonzero() == 3 * dim  # the rest is filled with zeros


def test_a_token_holds_neighbouring_dimensions():
    """Token k, in reading order, those from k C on; what is left over is at the end."""
    tokens = FlatAsMap(137).fold(torch.arange(1, 138).float().view(1, 137, 1, 1)).flatten(2)[0].T  # (64, 3)
    assert torch.equal(tokens.flatten(), torch.cat((torch.arange(1, 138), torch.zeros(55))).float())
