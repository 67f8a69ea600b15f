import math

import numpy as np
import pytest
import torch
import torch_fidelity
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from torch.utils.data import Subset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from flowergen.errors import UserError
from flowergen.metrics import pairwise
from flowergen.metrics.set_distances import (
    Gaussian,
    frechet_distance,
    gaussian,
    inception_score,
    kernel_distance,
    precision_recall,
)

DIM = 40


def features(num, seed, dim=DIM, scale=1.0):
    """Correlated and not negative, as Inception's are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(100).standard_normal((dim, dim)) / math.sqrt(dim)
    return np.abs(rng.standard_normal((num, dim)) @ mixing * scale).astype(np.float32)


def diagonal(mean, variances):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(variances, dtype=torch.float64)))


@pytest.fixture(params=[12, 200], ids=["fewer pictures than dimensions", "more"])
def sets(request):
    return features(request.param, 0), features(request.param, 1, scale=1.2)


# ---- Frechet ---------------------------------------------------------------------------------------------------------
def test_gaussian_is_numpys_mean_and_covariance_in_float64(sets, monkeypatch):
    """In blocks too, and with the unbiased denominator."""
    monkeypatch.setattr(pairwise, "BLOCK_ROWS", 7)
    for x in map(gaussian, sets):
        assert x.mean.dtype == x.covariance.dtype == torch.float64
    x, expected = gaussian(sets[0]), sets[0].astype(np.float64)
    np.testing.assert_allclose(x.mean, expected.mean(0), rtol=1e-14)
    np.testing.assert_allclose(x.covariance, np.cov(expected, rowvar=False), rtol=1e-11, atol=1e-14)


def test_gaussian_reads_a_memory_map_and_keeps_its_digits_far_from_zero(tmp_path):
    """Mean 1e4, spread 1e-2: E[x^2] - E[x]^2 in float32 would leave nothing."""
    x = (1e4 + np.random.default_rng(0).integers(-8, 9, (3000, 3)) / 512).astype(np.float32)  # exact in float32
    np.save(tmp_path / "x.npy", x)
    got = gaussian(np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(got.covariance, np.cov(x.astype(np.float64) - 1e4, rowvar=False), rtol=1e-9, atol=1e-14)


def test_frechet_distance_in_one_dimension():
    """(mu - nu)^2 + (sigma - tau)^2."""
    for mu, sigma, nu, tau in ((0.0, 1.0, 3.0, 1.0), (1.0, 2.0, -1.0, 5.0), (0.5, 0.0, 0.5, 2.0), (1.0, 0.0, 2.0, 0.0)):
        expected = (mu - nu) ** 2 + (sigma - tau) ** 2
        assert frechet_distance(diagonal([mu], [sigma**2]), diagonal([nu], [tau**2])) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_commuting_covariances():
    """With common eigenvectors it is the sum of the differences of standard deviations squared, rank-deficient or not."""
    rotation = ortho_group.rvs(6, random_state=0)
    a, b = np.array([1.0, 4.0, 9.0, 0.0, 0.0, 2.0]), np.array([4.0, 4.0, 0.0, 1.0, 0.0, 1e-6])
    p, q = (Gaussian(torch.zeros(6).double(), torch.from_numpy(rotation * s @ rotation.T)) for s in (a, b))
    assert frechet_distance(p, q) == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-7)


def test_frechet_distance_equals_scipys_square_root_of_the_product():
    p, q = gaussian(features(300, 0)), gaussian(features(300, 1, scale=1.3))
    root = sqrtm(p.covariance.numpy() @ q.covariance.numpy()).real
    expected = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * root.trace()
    assert frechet_distance(p, q) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_equals_torch_fidelity(sets):
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in sets]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*map(gaussian, sets)) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_equals_torchmetrics(sets):
    """Whose network is asked for the features of a picture and here gives them back."""

    class Identity(torch.nn.Module):
        num_features = DIM

        def forward(self, x):
            return x

    theirs = FrechetInceptionDistance(feature=Identity(), normalize=False).set_dtype(torch.float64)
    for real, x in enumerate(sets):
        theirs.update(torch.from_numpy(x).double(), real=bool(real))
    assert frechet_distance(*map(gaussian, sets)) == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_the_two_may_change_places(sets):
    """To 1e-9 of the variance, also where most directions have none; so does a set of another rank."""
    p, q = map(gaussian, sets)
    few = gaussian(sets[1][:9])
    assert 0 <= frechet_distance(p, p) < 1e-9 * p.covariance.trace()
    assert frechet_distance(p, q) == pytest.approx(frechet_distance(q, p), rel=1e-9)
    assert frechet_distance(p, few) == pytest.approx(frechet_distance(few, p), rel=1e-9)


# ---- Kernel ----------------------------------------------------------------------------------------------------------
def test_kernel_distance_is_the_unbiased_estimate_in_float64():
    """Term by term, for sets of different size."""
    x, y = features(9, 0).astype(np.float64), features(7, 1, scale=1.2).astype(np.float64)

    def mean(a, b, skip):
        values = [(u @ v / DIM + 1) ** 3 for i, u in enumerate(a) for j, v in enumerate(b) if not (skip and i == j)]
        return math.fsum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_equals_torch_fidelity_with_one_subset_of_everything_and_torchmetrics(sets):
    x, y = map(torch.from_numpy, sets)
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=len(x), verbose=False)
    assert kernel_distance(*sets) == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-5)  # theirs in float32
    assert kernel_distance(*sets) == pytest.approx(poly_mmd(x.double(), y.double()).item(), rel=1e-9)


def test_kernel_distance_is_zero_on_average_between_two_sets_of_one_distribution():
    """Unbiased: within four standard errors over 300 pairs; the biased estimate is 40 errors away."""
    draws = np.array([kernel_distance(features(20, 2 * i), features(30, 2 * i + 1)) for i in range(300)])
    assert abs(draws.mean()) < 4 * draws.std() / math.sqrt(len(draws))
    assert draws.min() < 0


# ---- Inception score -------------------------------------------------------------------------------------------------
def test_inception_score_equals_torch_fidelity_without_splits():
    logits = np.random.default_rng(0).normal(0, 3, (150, 20)).astype(np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=1)["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(theirs, rel=1e-12)


def test_inception_score_runs_from_one_to_the_number_of_classes():
    """Certain and balanced over K classes: K, with probabilities that are exactly 0; all pictures alike: 1."""
    assert inception_score(np.tile(1000 * np.eye(7, dtype=np.float32), (3, 1))) == pytest.approx(7, rel=1e-12)
    assert inception_score(np.tile(np.arange(5, dtype=np.float32), (9, 1))) == pytest.approx(1, rel=1e-12)


# ---- Precision and recall --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_equal_torch_fidelity(k):
    real, fake = features(200, 0), features(150, 1, scale=0.8)
    theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=k, verbose=False)
    precision, recall = precision_recall(real, fake, k)
    assert 0.05 < recall < 0.95
    assert precision != recall
    assert (precision, recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_precision_and_recall_on_a_line_by_hand():
    """Radii of {0, 1, 2, 10} with k = 1 are 1, 1, 1, 8, and the border belongs to the ball."""
    real = np.array([[0], [1], [2], [10]], dtype=np.float32)
    fake = np.array([[-1], [-1.5], [3], [17.5], [18.5]], dtype=np.float32)  # radii 0.5, 0.5, 4, 1, 1, and 10 is 7 away from 3
    assert precision_recall(real, fake, k=1) == pytest.approx((3 / 5, 3 / 4))


def test_copies_of_members_lie_within_a_manifold_of_no_volume():
    """Four times the same picture has radius 0 with k = 3; its copy is within, another picture is not."""
    rng = np.random.default_rng(0)
    real = np.repeat(rng.normal(3, 1, (5, 300)).astype(np.float32), 4, axis=0)
    others = rng.normal(3, 1, (5, 300)).astype(np.float32)
    assert precision_recall(real, real[rng.permutation(20)]) == (1, 1)
    assert precision_recall(real, np.concatenate((real[::4], others)))[0] == 0.5


# ---- All -------------------------------------------------------------------------------------------------------------
def test_neither_the_order_nor_the_size_of_blocks_matters(sets, monkeypatch):
    def scores(x, y):
        return frechet_distance(gaussian(x), gaussian(y)), kernel_distance(x, y), inception_score(x), *precision_recall(x, y)

    x, y = sets
    whole = scores(x, y)
    rng = np.random.default_rng(0)
    assert scores(rng.permutation(x), rng.permutation(y)) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(pairwise, "BLOCK_ROWS", 5)
    assert scores(x, y) == pytest.approx(whole, rel=1e-5)


def test_sets_too_small_are_named():
    one, three = features(1, 0), features(3, 0)
    with pytest.raises(UserError, match="1 pictures in a set"):
        gaussian(one)
    for pair in ((one, three), (three, one)):
        with pytest.raises(UserError, match="2 or more"):
            kernel_distance(*pair)
    four = features(4, 1)
    for pair in ((four, three), (three, four)):
        with pytest.raises(UserError, match="4 pictures or more"):
            precision_recall(*pair)
    assert precision_recall(four, four) == (1, 1)


def test_fid_and_kid_of_pictures_equal_torch_fidelity_through_one_network(inception_file):
    """The same file and pictures, each side's own loop over the network: both values to 1e-3.

    FID by the layer of 768, since their eigenvalues of a nonsymmetric matrix take half a minute for 2048.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 6, 3, 4, 4), dtype=np.uint8)
    pictures = torch.from_numpy(coarse.repeat(8, 3).repeat(8, 4))  # (2, 6, 3, 32, 32)
    pictures[1] //= 2
    theirs = torch_fidelity.calculate_metrics(
        **{f"input{number}": Subset(x, range(len(x))) for number, x in enumerate(pictures, start=1)},
        fid=True,
        kid=True,
        feature_layer_fid="768",
        kid_subsets=1,
        kid_subset_size=6,
        feature_extractor_weights_path=str(inception_file),
        save_cpu_ram=True,  # no worker processes
        cuda=False,
        verbose=False,
    )
    layers = ["768", "2048"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(inception_file))
    network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        (x, x_kid), (y, y_kid) = (
            [torch.cat(batches).numpy() for batches in zip(*map(network, half.split(4)), strict=True)] for half in pictures
        )
    assert theirs["frechet_inception_distance"] > 1
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert kernel_distance(x_kid, y_kid) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
