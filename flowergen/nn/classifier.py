"""A small residual network that tells classes apart."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.blocks import ResidualBlock, down

LARGEST_PX = 64  # larger pictures are made smaller, so that the cost of one is bounded
WIDTHS = (64, 128, 256)  # of the stages; the last one is the number of features


def shrink(x: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 3, s, s), s = min(S, `LARGEST_PX`), antialiased."""
    if x.shape[-1] <= LARGEST_PX:
        return x
    return F.interpolate(x, size=(LARGEST_PX, LARGEST_PX), mode="bilinear", antialias=True)


class Classifier(nn.Module):
    """Four halvings with residual blocks between them, then the mean over all positions (He et al. 2016, arXiv:1603.05027).

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = [down(3, WIDTHS[0] // 2, "batch", "relu")]
        channels = WIDTHS[0] // 2
        for width in WIDTHS:
            layers += [down(channels, width, "batch", "relu"), ResidualBlock(width, "batch", "relu")]
            channels = width
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.to_logits = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits.

        Args:
            x: (N, 3, S, S) in [0, 1], S from 28 px.

        Returns:
            (N, 256) before the last layer, not negative; (N, K) logits.
        """
        h = (4 * shrink(x) - 2).contiguous(memory_format=torch.channels_last)  # about mean 0 and variance 1
        features = self.layers(h).mean(dim=(-2, -1))  # (N, 256)
        return features, self.to_logits(features)  # (N, K)
