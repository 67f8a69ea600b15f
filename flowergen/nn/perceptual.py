"""Networks whose features are used to compare pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

# Index of the activation in torchvision's vgg16().features, by its name in Johnson et al. 2016 (arXiv:1603.08155).
VGG16_LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision.transforms.ImageClassification


class VGG16Features(nn.Module):
    """Activations of VGG-16 (Simonyan & Zisserman 2015, arXiv:1409.1556), frozen, up to the last requested layer.

    Args:
        state_dict: torchvision's for vgg16; keys other than ``features.*`` are ignored.
        layers: names from `VGG16_LAYERS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, state_dict: dict[str, Tensor], layers: Sequence[str]):
        super().__init__()
        self.wanted = [VGG16_LAYERS[name] for name in layers]
        features = make_layers(cfgs["D"], batch_norm=False)  # configuration D is VGG-16
        features.load_state_dict(
            {key.removeprefix("features."): value for key, value in state_dict.items() if key.startswith("features.")}
        )
        self.features = features[: max(self.wanted) + 1].requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the activations, (N, C, h, w) for each requested layer, from the picture inwards.

        Args:
            x: (N, C, H, W), pictures in [0, 1], at least 16 px a side for relu5_3; grey ones, C = 1, are repeated for each of
                the three colours.
        """
        h, activations = (x - self.mean) / self.std, []
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in self.wanted:
                activations.append(h)
        return activations

    def train(self, mode: bool = True) -> "VGG16Features":
        """Stay in evaluation mode."""
        return super().train(False)
