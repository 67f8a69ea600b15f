import pytest
import torch

from flowergen.losses.reconstruction import gaussian_elbo
from flowergen.metrics.reconstruction import gradient_energy, psnr, ssim
from flowergen.modules.reconstruction_scores import ReconstructionScores
from flowergen.modules.running_means import RunningMeans
from flowergen.picture_shape import PictureShape


def a_set(num: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x, noise = torch.rand(num, 3, 12, 12, generator=g), torch.randn(2, num, 3, 12, 12, generator=g)
    mean = torch.randn(num, 2, 3, 3, generator=g) * torch.tensor([1.0, 0.01])[:, None, None]
    return x, (x + 0.2 * noise[0]).clamp(0, 1), (x + 0.05 * noise[1]).clamp(0, 1), mean


@pytest.mark.parametrize("batch_size", [6, 4, 1])
def test_a_set_s_scores_do_not_depend_on_its_batches(batch_size: int) -> None:
    """ELBO from the draw, PSNR, SSIM and sharpness from the mean; sharpness is a ratio of means, not a mean of ratios."""
    x, x_hat, x_mean, mean = a_set()
    scores, means = ReconstructionScores(PictureShape.of(12)), RunningMeans()
    for _ in range(2):  # the second time as if new
        means.reset()
        for first in range(0, 6, batch_size):
            rows = slice(first, first + batch_size)
            batch = scores(x[rows], x_hat[rows], x_mean[rows], mean[rows])
            means.update(batch | {"loss_kl": torch.full((len(x[rows]),), 7.0)})
        summary = scores.summarise(means.compute())
    assert summary == pytest.approx(
        {
            "psnr": psnr(x_mean, x).mean().item(),
            "ssim": ssim(x_mean, x).mean().item(),
            "sharpness": (gradient_energy(x_mean).mean() / gradient_energy(x).mean()).item(),
            "elbo": gaussian_elbo((x_hat - x).double().square().sum().item(), 6 * 7.0, 6, 3 * 12 * 12),
            "active_units": 9,
            "loss_kl": 7.0,
        },
        rel=1e-5,
    )


def test_pictures_without_structure_have_a_finite_sharpness() -> None:
    x = torch.full((2, 3, 12, 12), 0.5)
    scores = ReconstructionScores(PictureShape.of(12))
    means = {name: value.mean().item() for name, value in scores(x, x, x, torch.zeros(2, 1, 1, 1)).items()}
    assert scores.summarise(means | {"loss_kl": 0.0})["sharpness"] == 0
