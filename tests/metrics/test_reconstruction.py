import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from flowergen.metrics.reconstruction import gradient_energy, psnr, ssim


@pytest.fixture(params=[(3, 28, 28), (3, 45, 45), (1, 28, 45)], ids=str)
def pair(request):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, *request.param, generator=g)
    noise = torch.randn(x.shape, generator=g) * torch.tensor([0.01, 0.1, 0.5]).reshape(3, 1, 1, 1)
    return (x + noise).clamp(0, 1), x


def test_psnr_equals_scikit_image_per_image(pair):
    """One value an image, which its neighbours in the batch do not touch."""
    x_hat, x = (images.double().numpy() for images in pair)
    expected = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, x_hat, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)


def test_ssim_equals_scikit_image_per_image(pair):
    """Same window and constants; scikit-image leaves the border of 5 px out, so it gets a mirrored one."""
    border = ((0, 0), (5, 5), (5, 5))
    x_hat, x = ([np.pad(image, border, mode="reflect") for image in images.double().numpy()] for images in pair)
    expected = [
        structural_similarity(
            a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(x, x_hat, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair), expected, rtol=1e-4)


def test_equal_pictures_have_the_best_scores(pair):
    """SSIM 1, PSNR infinite; a batch of one keeps its axis."""
    _, x = pair
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    assert psnr(x, x).isinf().all()
    assert ssim(x[:1], x[:1]).shape == psnr(x[:1], x[:1]).shape == (1,)


def test_scores_are_float32_under_autocast(pair):
    """Mixed-precision validation reports the same numbers."""
    x_hat, x = pair
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = ssim(x_hat, x), psnr(x_hat, x)
    assert torch.equal(scores[0], ssim(x_hat, x))
    assert torch.equal(scores[1], psnr(x_hat, x))
    assert psnr(x_hat.bfloat16(), x).dtype == ssim(x_hat.bfloat16(), x).dtype == torch.float32


def test_gradient_energy_is_the_mean_square_of_neighbours_differences(pair):
    """By numpy's diff, across and down alike, one value an image."""
    for images in pair:
        expected = [
            (np.square(np.diff(x, axis=2)).mean() + np.square(np.diff(x, axis=1)).mean()) / 2 for x in images.double().numpy()
        ]
        np.testing.assert_allclose(gradient_energy(images), expected, rtol=1e-5)


def test_gradient_energy_is_the_power_of_the_frequencies():
    """A wave of k cycles on S px has 4 sin^2(pi k / S) times its power, a^2 / 2, in its direction and 0 in the other."""
    size, amplitude = 64, 0.3
    for cycles in (1, 5, 20):
        wave = amplitude * torch.sin(2 * torch.pi * cycles * torch.arange(size + 1, dtype=torch.float64) / size)
        across = wave.expand(1, 3, size + 1, size + 1)
        expected = 4 * np.sin(np.pi * cycles / size) ** 2 * amplitude**2 / 2 / 2
        assert gradient_energy(across).item() == pytest.approx(expected, rel=1e-5)
        assert gradient_energy(across.mT).item() == pytest.approx(expected, rel=1e-5)


def test_blur_lowers_gradient_energy_and_noise_raises_it(pair):
    x_hat, x = pair
    assert (gradient_energy(torch.nn.functional.avg_pool2d(x, 3, 1, 1)) < gradient_energy(x) / 2).all()
    flat = torch.full_like(x, 0.5)
    assert gradient_energy(flat).tolist() == [0, 0, 0]
    assert (gradient_energy(flat + x_hat - x) > 0).all()
