"""Scores common to all autoencoders, independent of their training objective."""

from torch import Tensor, nn

from flowergen.losses.reconstruction import gaussian_elbo, squared_error
from flowergen.metrics.active_units import ActiveUnits
from flowergen.metrics.reconstruction import gradient_energy, psnr, ssim
from flowergen.picture_shape import PictureShape


class ReconstructionScores(nn.Module):
    """PSNR, SSIM, sharpness, the common ELBO and active units of a set of pictures of one shape."""

    def __init__(self, shape: PictureShape):
        super().__init__()
        self.num_values = shape.num_values
        self.active_units = ActiveUnits()

    def forward(self, x: Tensor, x_hat: Tensor, x_mean: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            x, x_hat, x_mean: (N, C, H, W) pictures in [0, 1], decoded from a draw z ~ q(z|x), and decoded from its mean.
            mean: (N, C, h, w) mean of q(z|x).

        Returns:
            By name, each (N,): the terms whose means `summarise` takes, including ``psnr`` and ``ssim`` of ``x_mean``.
        """
        self.active_units.update(mean)
        return {
            "squared_error": squared_error(x_hat, x),
            "gradient_energy": gradient_energy(x),
            "gradient_energy_hat": gradient_energy(x_mean),
            "psnr": psnr(x_mean, x),
            "ssim": ssim(x_mean, x),
        }

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Replace the intermediate terms of a set's means by the scores derived from them, and reset.

        Args:
            means: means of the terms that `forward` returned, and ``loss_kl`` in nats.

        Returns:
            The other means, and ``elbo``, the common one, in nats per picture; ``sharpness``, the gradient energy of the
            reconstructions over that of the pictures; ``active_units``, the number of latent dimensions in use.
        """
        means = dict(means)
        means["active_units"] = self.active_units.compute().item()
        self.active_units.reset()
        means["sharpness"] = means.pop("gradient_energy_hat") / max(means.pop("gradient_energy"), 1e-12)
        means["elbo"] = gaussian_elbo(means.pop("squared_error"), means["loss_kl"], 1, self.num_values)
        return means
