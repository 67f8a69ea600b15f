"""Pretrained autoencoders of diffusers as the first stage of latent diffusion."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowergen.errors import UserError, one_line
from flowergen.modules.image_model import ImageModel
from flowergen.nn.posterior import LOGVAR_MIN, Posterior
from flowergen.picture_shape import ImageSize, PictureShape

# attribute of the encoder's output that contains the latents
LATENTS = {"AutoencoderKL": "latent_dist", "AutoencoderTiny": "latents", "AutoencoderDC": "latent"}


def build_pretrained(
    shape: PictureShape, kind: str, config: dict[str, Any], source: str
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build an autoencoder of diffusers, with random weights.

    Args:
        shape: of the pictures.
        kind: name of the class, one of ``LATENTS``.
        config: arguments of the class.
        source: origin of the weights, for messages.

    Returns:
        The autoencoder, and the shape (C, h, w) of its latents.

    Raises:
        UserError: diffusers is not installed, pictures of this size cannot be encoded and decoded, or the arguments are wrong.
    """
    if kind not in LATENTS:
        raise UserError(f"{source} is of class {kind}: choose one of {', '.join(LATENTS)}")
    try:
        import diffusers  # slow to import
    except ImportError as error:
        raise UserError(f"{source} needs diffusers: pip install 'flowergen[hub]'") from error

    try:
        net: nn.Module = getattr(diffusers, kind).from_config(config)
        with torch.device("meta"):
            probe = getattr(diffusers, kind).from_config(config)
    except Exception as error:  # diffusers raises various exceptions for wrong arguments
        raise UserError(f"{source}: its config.json is not one of {kind} ({one_line(error)})") from error
    try:
        z = _posterior(probe, kind, torch.zeros(1, *shape, device="meta")).mean
        decoded = tuple(probe.decode(z).sample.shape)
    except Exception as error:  # torch raises various exceptions for shapes that do not fit
        raise UserError(f"{source} cannot encode pictures of {shape} ({one_line(error)[:200]})") from error
    if decoded != (1, *shape):
        raise UserError(
            f"{source} decodes pictures of {shape} to {PictureShape(*decoded[1:])}: use a data.image_size that is a multiple "
            f"of {round(decoded[-1] / z.shape[-1])}"
        )
    return net, (z.shape[1], z.shape[2], z.shape[3])


def _posterior(net: nn.Module, kind: str, x: Tensor) -> Posterior:
    """(N, C, H, W) in [-1, 1] -> q(z|x)."""
    latents = getattr(net.encode(x), LATENTS[kind])  # type: ignore[operator]
    if kind == "AutoencoderKL":
        return Posterior(latents.mean, latents.logvar)
    return Posterior(latents, torch.full_like(latents, LOGVAR_MIN))


class PretrainedAutoencoder(ImageModel):
    """An autoencoder of diffusers; it is not trained further.

    Its latents are in its own units, without its ``scaling_factor``, as latent diffusion measures their scale. Those of
    ``AutoencoderTiny`` and ``AutoencoderDC`` have a posterior of almost no variance.

    Args:
        image_size, image_channels: see ``ImageModel``.
        seed: unused; every model has one.
        kind, config, source: see ``build_pretrained``, which may raise a ``UserError``.
    """

    decoder_activation = "clamp"
    best_metric, best_mode = "none", "max"  # it is not trained

    def __init__(
        self, image_size: ImageSize, seed: int, kind: str, config: dict[str, Any], source: str, image_channels: int = 3
    ):
        super().__init__(image_size, seed, image_channels=image_channels)
        self.kind, self.source = kind, source
        self.net, self._latent_shape = build_pretrained(self.picture_shape, kind, config, source)

    @property
    def inference_net(self) -> nn.Module:
        """The autoencoder of diffusers."""
        return self.net

    def parts(self, name: Literal["encoder", "decoder"]) -> nn.ModuleDict:
        """Return the encoder or the decoder, with the convolution between it and the latents if there is one."""
        convolution = {"encoder": "quant_conv", "decoder": "post_quant_conv"}[name]
        found = {part: getattr(self.net, part, None) for part in (name, convolution)}
        return nn.ModuleDict({part: net for part, net in found.items() if net is not None})

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""
        return self._latent_shape

    def encode(self, x: Tensor) -> Posterior:
        """(N, C, H, W) in [0, 1] -> q(z|x), mean and logvar (N, C, h, w)."""
        return _posterior(self.net, self.kind, 2 * x - 1)

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, H, W) in [0, 1]."""
        return ((self.net.decode(z).sample + 1) / 2).clamp(0, 1)  # type: ignore[operator]

    def summary(self) -> str:
        """Describe the network in one line."""
        return f"{self.kind} of {self.source}, {self.picture_shape} to latents of {' x '.join(map(str, self.latent_shape))}"

    def configure_optimizers(self) -> None:
        """Return none: it is not trained."""
