import struct

import numpy as np
import pytest
import torch
from scipy import stats

from flowergen import randomness
from flowergen.randomness import (
    device_generator,
    generator,
    initialisation,
    noise_of,
    normal,
    normal_per_sample,
    stratified,
    uniform,
)


def test_draws_ignore_and_leave_alone_the_global_generators():
    """A draw is a function of its key: global seeds and earlier draws neither change it nor are changed by it."""
    torch.manual_seed(1)
    first = normal((4, 3), seed=7, step=5, purpose="posterior")
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state()
    again = normal((4, 3), seed=7, step=5, purpose="posterior")
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_every_part_of_the_key_counts_in_full_width():
    """Seeds that agree in their low 32 bits, and neighbours that would share a key if fields ran together, differ."""
    keys = [
        (0, 0, "a"),
        (1, 0, "a"),
        (0, 1, "a"),
        (0, 0, "b"),
        (2**32, 0, "a"),
        (2**32 + 1, 1, "a"),
        (1, 2**32 + 1, "a"),
        (0, 2**32, "a"),
        (2**63, 0, "a"),
        (0, 0, ""),
        (0, 0, "a\0"),
        (0, 0, "ä"),
    ]
    draws = {normal((4,), seed=seed, step=step, purpose=purpose).numpy().tobytes() for seed, step, purpose in keys}
    assert len(draws) == len(keys)


def test_no_two_of_50_000_samples_collide():
    """As many samples as FID wants get as many streams."""
    firsts = {generator(0, index, "prior").integers(2**63) for index in range(50_000)}
    assert len(firsts) == 50_000


def test_noise_is_standard_normal():
    """Neither the pooled numbers of one draw nor the first numbers of many samples can be told from N(0, 1)."""
    one_draw = normal((20_000,), seed=0, step=0, purpose="test").numpy()
    many_streams = normal_per_sample(range(5_000), (1,), seed=0, purpose="test").flatten().numpy()
    assert stats.kstest(one_draw, "norm").pvalue > 0.01
    assert stats.kstest(many_streams, "norm").pvalue > 0.01
    assert one_draw.dtype == np.float32


def test_a_smaller_batch_is_the_beginning_of_a_larger_one():
    """Row i of the global batch's noise does not depend on how many rows are drawn, for odd shapes too."""
    whole = normal((8, 3, 5, 5), seed=0, step=3, purpose="posterior")
    for num in (1, 3, 7):
        assert torch.equal(normal((num, 3, 5, 5), seed=0, step=3, purpose="posterior"), whole[:num])


def test_a_sample_depends_on_its_number_alone():
    """Batch size, order, repetition and the container of the numbers leave sample i as it is."""
    whole = normal_per_sample(range(10), (4, 1, 1), seed=3, purpose="prior")
    shuffled = [7, 0, 9, 7]
    assert torch.equal(normal_per_sample(shuffled, (4, 1, 1), seed=3, purpose="prior"), whole[shuffled])
    assert torch.equal(normal_per_sample(torch.tensor(shuffled), (4, 1, 1), seed=3, purpose="prior"), whole[shuffled])
    assert torch.equal(whole[7], normal((4, 1, 1), seed=3, step=7, purpose="prior"))
    assert normal_per_sample([], (4, 1, 1), seed=3, purpose="prior").shape == (0, 4, 1, 1)


def test_on_a_cpu_noise_is_numpy_s_and_on_a_gpu_the_gpu_s_own():
    assert [noise_of(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "cpu"]
    expected = generator(7, 5, "posterior").standard_normal((4, 3), dtype=np.float32)
    assert torch.equal(
        normal((4, 3), seed=7, step=5, purpose="posterior", device=torch.device("cpu")), torch.from_numpy(expected)
    )


@pytest.mark.parametrize(("draw", "distribution"), [(normal, "norm"), (uniform, "uniform")])
def test_a_device_draws_from_a_generator_of_its_own_keyed_by_all_of_the_key(draw, distribution, monkeypatch):
    """The code for a GPU, with the CPU's generator in place of the GPU's."""
    monkeypatch.setattr(randomness, "OWN_NOISE_DEVICES", ("cpu",))
    key = {"seed": 7, "step": 5, "purpose": "posterior"}
    first = draw((20_000,), **key)
    assert stats.kstest(first.numpy(), distribution).pvalue > 0.01
    assert first.dtype == torch.float32
    state = torch.get_rng_state()
    assert torch.equal(draw((20_000,), **key), first)
    assert torch.equal(state, torch.get_rng_state())
    for other in ({"seed": 7 + 2**32}, {"step": 5 + 2**32}, {"step": 6}, {"purpose": "prior"}):
        assert not torch.equal(draw((20_000,), **key | other), first)
    assert not torch.equal(first, torch.from_numpy(generator(7, 5, "posterior").standard_normal(20_000, dtype=np.float32)))


def test_stratified_numbers_are_uniform_each_and_evenly_spread_together():
    draws = torch.stack([stratified((16,), seed=0, step=step, purpose="time") for step in range(2_000)])  # (2000, 16)
    assert draws.dtype == torch.float32
    assert ((draws >= 0) & (draws < 1)).all()
    for position in (0, 7, 15):
        assert stats.kstest(draws[:, position].numpy(), "uniform").pvalue > 0.01
    gaps = draws.sort(dim=1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 16), rtol=0, atol=1e-6)
    assert torch.equal(draws[3], stratified((16,), seed=0, step=3, purpose="time"))


def test_a_device_s_generator_is_seeded_with_64_bits():
    """So that no two of all the draws of a long run are likely to be the same."""
    seeds = [device_generator(0, step, "posterior", torch.device("cpu")).initial_seed() for step in range(5_000)]
    assert len(set(seeds)) == 5_000
    assert max(seeds) > 2**63
    assert min(seeds) < 2**61


def test_a_negative_key_is_refused():
    """-1 does not silently become another seed."""
    with pytest.raises(struct.error):
        generator(-1, 0, "a")


def test_weights_are_a_function_of_the_seed():
    """Whatever was drawn before, and torch's global stream goes on as if no layer had been made."""
    weights = []
    for seed in (3, 3, 4):
        torch.rand(5)
        state = torch.get_rng_state()
        with initialisation(seed):
            weights.append(torch.nn.Linear(4, 4).weight)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_uniform_noise_is_uniform_and_never_one():
    u = uniform((20_000,), seed=0, step=0, purpose="test")
    assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01
    assert 0 <= u.min() <= u.max() < 1
    assert u.dtype == torch.float32


def test_uniform_noise_is_a_function_of_its_key_and_prefix_stable():
    """As normal noise is: row i does not depend on how many rows are drawn, nor on global state."""
    whole = uniform((8, 7), seed=3, step=5, purpose="augmentation")
    torch.manual_seed(1)
    assert torch.equal(uniform((3, 7), seed=3, step=5, purpose="augmentation"), whole[:3])
    for other in ({"seed": 4}, {"step": 6}, {"purpose": "posterior"}):
        assert not torch.equal(uniform((8, 7), **({"seed": 3, "step": 5, "purpose": "augmentation"} | other)), whole)
