import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from flowergen.errors import UserError
from flowergen.metrics import pairwise
from flowergen.metrics.nearest import near_duplicates, two_nearest

SIDE = 8
DIM = 3 * SIDE * SIDE


def pictures(num, seed):
    return np.random.default_rng(seed).integers(0, 256, (num, DIM), dtype=np.uint8)


def mirrored(x):
    return np.ascontiguousarray(x.reshape(-1, 3, SIDE, SIDE)[..., ::-1]).reshape(len(x), -1)


def distances(variants, t):
    """(N, M) float64 by direct difference, the nearest variant."""
    t = t.astype(np.float64)
    return np.min([np.linalg.norm(x[:, None].astype(np.float64) - t, axis=2) for x in variants], axis=0)


@pytest.fixture(params=[5, 1024], ids=["many blocks", "one block"], autouse=True)
def block_rows(request, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK_ROWS", request.param)


def test_it_finds_what_scikit_learn_finds():
    """Also far from the origin, where |x|^2 in float32 is coarser than the distances differ."""
    x, t = np.random.default_rng(0).normal(1000, 1, (2, 63, 50)).astype(np.float32)
    distance, index = (
        NearestNeighbors(n_neighbors=2, algorithm="brute").fit(t.astype(np.float64)).kneighbors(x.astype(np.float64))
    )
    got = two_nearest([x], t)
    assert (got.index.dtype, got.distance.dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(got.index, index)
    np.testing.assert_allclose(got.distance, distance, rtol=1e-6)


def test_bytes_count_as_value_over_255_on_either_side():
    x, t = pictures(40, 0), pictures(33, 1)
    expected = np.sort(distances([x / 255], t / 255))[:, :2]
    for queries in (x, (x / 255).astype(np.float32)):
        for candidates in (t, (t / 255).astype(np.float32)):
            np.testing.assert_allclose(two_nearest([queries], candidates).distance, expected, rtol=1e-5)


def test_the_nearest_variant_counts():
    """Mirror images and a third variant of other length: the minimum over variants comes before the two nearest."""
    x, t = pictures(40, 0), pictures(33, 1)
    t[7] = mirrored(x[3:4])[0]
    variants = [x, mirrored(x), x // 2]
    expected = distances([v / 255 for v in variants], t / 255)
    got = two_nearest(variants, t)
    np.testing.assert_array_equal(got.index, expected.argsort(1, kind="stable")[:, :2])
    np.testing.assert_allclose(got.distance, np.sort(expected)[:, :2], rtol=1e-5)
    assert (got.index[3, 0], got.distance[3, 0]) == (7, 0)


def test_an_exact_copy_is_at_distance_zero_and_before_its_near_copies():
    """Far from the origin, and in spite of three candidates that differ in one value by a hair."""
    x = np.random.default_rng(0).normal(100, 1, (30, DIM)).astype(np.float32)
    near = np.repeat(x[:1], 3, axis=0)
    near[:, 5] += np.array([2, 1, 3], dtype=np.float32) / 512
    t = np.concatenate((near, x[::-1]))
    got = two_nearest([x], t)
    assert torch.equal(got.distance[:, 0], torch.zeros(30))
    assert got.index[0].tolist() == [32, 1]
    assert got.distance[0, 1].item() == 1 / 512
    assert got.index[1:, 0].tolist() == list(range(31, 2, -1))


def test_of_equal_candidates_the_first_comes_first():
    x = pictures(12, 0)
    t = np.concatenate((x, x))
    got = two_nearest([x], t)
    assert got.index.tolist() == [[i, i + 12] for i in range(12)]
    assert torch.equal(got.distance, torch.zeros(12, 2))


def test_two_candidates_are_enough_and_one_is_not():
    x, t = pictures(3, 0), pictures(2, 1)
    assert two_nearest([x], t).index.sort(1).values.tolist() == [[0, 1]] * 3
    assert two_nearest([x[:0]], t).index.shape == (0, 2)
    with pytest.raises(UserError, match="need 2 or more"):
        two_nearest([x], t[:1])


def test_it_reads_memory_maps(tmp_path, recwarn):
    """Read-only ones, and torch does not complain."""
    np.save(tmp_path / "t.npy", pictures(20, 0))
    t = np.load(tmp_path / "t.npy", mmap_mode="r")
    assert two_nearest([t], t).index[:, 0].tolist() == list(range(20))
    assert not near_duplicates([t], 0.1).any()
    assert not recwarn.list


def greedy(variants, closer_than):
    distance, kept = distances(variants, variants[0]), []
    for row in range(len(variants[0])):
        if all(distance[row, j] >= closer_than for j in kept):
            kept.append(row)
    return ~np.isin(np.arange(len(variants[0])), kept)


@pytest.mark.parametrize("closer_than", [0.0, 0.05, 0.3, 1.0, 3.0, np.inf])
def test_near_duplicates_are_those_of_the_plain_loop(closer_than):
    """A walk in small steps: each picture is close to its neighbours, so that it matters which ones stay."""
    rng = np.random.default_rng(0)
    walk = (np.cumsum(rng.normal(0, 0.02, (60, DIM)), axis=0) + 5).astype(np.float32)
    walk[17], walk[41] = mirrored(walk[3:4])[0], walk[40]
    variants = [walk, mirrored(walk)]
    expected = greedy(variants, closer_than)
    assert 0 <= expected.sum() < 60
    np.testing.assert_array_equal(near_duplicates(variants, closer_than), expected)


def test_a_mirror_image_is_a_near_duplicate_only_if_it_is_a_variant():
    x = pictures(20, 0)
    x[15], x[8] = mirrored(x[2:3])[0], x[4]
    assert near_duplicates([x], 1e-3).nonzero()[0].tolist() == [8]
    assert near_duplicates([x, mirrored(x)], 1e-3).nonzero()[0].tolist() == [8, 15]


def test_a_threshold_finer_than_float32_products_resolve_is_kept():
    """One level in one value of one picture is 0.0039: closer than 0.0040, not closer than 0.0039."""
    x = pictures(20, 0)
    x[11] = x[2]
    x[11, 30] ^= 1
    assert near_duplicates([x], 1.01 / 255).nonzero()[0].tolist() == [11]
    assert not near_duplicates([x], 0.99 / 255).any()


def test_progress_sees_all_blocks_of_rows():
    x, seen = pictures(20, 0), []

    def progress(blocks):
        for rows in blocks:
            yield rows
            seen.extend(range(rows.start, rows.stop))

    x[8] = x[4]
    assert near_duplicates([x], 1e-3, progress).nonzero()[0].tolist() == [8]
    assert seen == list(range(20))


def test_no_vectors_have_no_duplicates():
    assert near_duplicates([pictures(0, 0)], 1.0).shape == (0,)
