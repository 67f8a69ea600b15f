"""An autoencoder of diffusers as an encoder and a decoder, with the interface of ``ResidualAutoencoder``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.nn.posterior import LOGVAR_MIN, Posterior


class BoundedLatent(nn.Module):
    """Bound latents to (-3, 3), as the decoder of ``AutoencoderTiny`` does before its first layer."""

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        return torch.tanh(z / 3) * 3


class DiffusersEncoder(nn.Module):
    """q(z|x), see ``DiffusersAutoencoder``; its variance is almost 0 unless that is an ``AutoencoderKL``."""

    def __init__(self, net: nn.Module, kind: str):
        super().__init__()
        after = getattr(net, "quant_conv", None)
        self.layers = nn.Sequential(*[part for part in (net.encoder, after) if part is not None])  # type: ignore[arg-type]
        self.has_variance = kind == "AutoencoderKL"

    def forward(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [-1, 1] -> mean and logvar, each (N, C, h, w) float32."""
        encoded = self.layers(x)
        if self.has_variance:
            return Posterior.from_moments(encoded)
        return Posterior(encoded.float(), torch.full_like(encoded, LOGVAR_MIN, dtype=torch.float32))


class DiffusersDecoder(nn.Module):
    """p(x|z), see ``DiffusersAutoencoder``, with the last layer separate, which the adaptive weight needs."""

    def __init__(self, net: nn.Module, kind: str):
        super().__init__()
        decoder: nn.Module = net.decoder  # type: ignore[assignment]
        before = getattr(net, "post_quant_conv", None)
        layers = [] if before is None else [before]
        self.in_unit_range, self.shuffle = kind == "AutoencoderTiny", 1
        if kind == "AutoencoderTiny":
            *inner, last = decoder.layers  # type: ignore[misc]
            layers += [BoundedLatent(), *inner]
        else:
            last, decoder.conv_out = decoder.conv_out, nn.Identity()
            layers.append(decoder)
        if not isinstance(last, nn.Conv2d):  # upsampling block of an AutoencoderDC that works at half the resolution
            if last.interpolate:
                layers.append(nn.Upsample(scale_factor=2))
            else:
                self.shuffle = 2
            last = last.conv
        self.layers, self.to_picture = nn.Sequential(*layers), last

    def features(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, c, H / r, W / r), the input of the last layer; r is the factor of the pixel shuffle after it."""
        return self.layers(z)

    def picture(self, h: Tensor) -> Tensor:
        """(N, c, H / r, W / r) -> x_hat, (N, C, H, W): the last layer and what follows it."""
        x = F.pixel_shuffle(self.to_picture(h), self.shuffle)
        return 2 * x - 1 if self.in_unit_range else x  # the adaptive weight is a ratio, in which the 2 cancels

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> x_hat, (N, C, H, W), unbounded."""
        return self.picture(self.features(z))


class DiffusersAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        net: the autoencoder of diffusers, whose layers are reused, so that it cannot be used afterwards.
        kind: name of its class: ``AutoencoderKL``, ``AutoencoderTiny`` or ``AutoencoderDC``.
    """

    def __init__(self, net: nn.Module, kind: str):
        super().__init__()
        self.encoder, self.decoder = DiffusersEncoder(net, kind), DiffusersDecoder(net, kind)
