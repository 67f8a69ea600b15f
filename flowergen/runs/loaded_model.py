"""The Python interface to a trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flowergen.data.class_names import class_label
from flowergen.data.reading import UnreadablePicture, fit_picture, read_rgb
from flowergen.errors import UserError, printable
from flowergen.modules.image_model import ImageModel
from flowergen.nn.posterior import Posterior
from flowergen.runs.run_folder import RunFolder
from flowergen.viz.pictures import Pictures

if TYPE_CHECKING:
    from flowergen.evaluation.edits import EditSettings


class LoadedModel:
    """A trained model, ready to use.

    Args:
        module: the LightningModule in eval mode.
        config: the run's config, plain data.
        pictures: hash of the training data, see ``ImageDataModule.state_dict``.
        class_names: class names by label; empty without labels.
        run: the run folder.
    """

    def __init__(self, module: ImageModel, config: dict[str, Any], pictures: str, class_names: Sequence[str], run: RunFolder):
        self.module, self.config, self.pictures, self.class_names, self.run = module, config, pictures, class_names, run

    def __repr__(self) -> str:
        """Return folder, network, classes and device in one line."""
        classes = f"{len(self.class_names)} class names, " if self.class_names else ""
        return f"LoadedModel({str(self.run.path)!r}: {self.module.summary()}; {classes}on {self.module.device})"

    def read(self, *files: str | Path) -> Pictures:
        """Read picture files as this model's input, fitted to its pictures' shape as in its training (``data.fit``).

        Args:
            *files: at least one picture file, of any size and mode.

        Returns:
            (N, C, H, W) in [0, 1].

        Raises:
            UserError: a file cannot be read as a picture.
        """
        if not files:
            raise UserError("read() takes at least one picture file")
        pictures = []
        for file in files:
            try:
                pictures.append(torch.from_numpy(self.fitted(read_rgb(Path(file).expanduser()))))
            except UnreadablePicture as error:
                raise UserError(f"{printable(str(file))} cannot be read: {printable(str(error))}") from error
        return Pictures.of(torch.stack(pictures).float() / 255)

    def fitted(self, image: np.ndarray) -> np.ndarray:
        """Fit a picture, (H, W, 3) uint8 of any size, to the shape of this model's pictures, (C, H, W) uint8."""
        return fit_picture(image, self.module.picture_shape, self.config["data"].get("fit", "crop"))

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> Posterior:
        """Encode (N, C, H, W) pictures in [0, 1] as q(z|x) with mean and logvar (N, C, h, w).

        Raises:
            UserError: the pictures have another shape.
        """
        shape = self.module.picture_shape
        if x.ndim != 4 or x.shape[1:] != shape:
            wanted = ", ".join(map(str, ("N", *shape)))
            raise UserError(f"this model encodes pictures of shape ({wanted}), and these have {tuple(x.shape)}")
        return self.module.encode(x.to(self.module.device))

    @torch.inference_mode()
    def decode(self, z: torch.Tensor) -> Pictures:
        """Decode (N, C, h, w) latents to (N, C, H, W) pictures in [0, 1]."""
        return Pictures.of(self.module.decode(z.to(self.module.device)))

    def sample(
        self,
        num: int,
        seed: int = 0,
        classes: Sequence[str | int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Sample new pictures, the same as ``python -m flowergen.sample run=RUN num=NUM seed=SEED``.

        An autoencoder samples its latents from the mixture fitted at the end of training. If a checkpoint has none, it samples
        from N(0, I) and logs a warning.

        Args:
            num: number of pictures, at least 1.
            seed: random seed; picture i depends on (seed, i) and its class only.
            classes: names or numbers, used in turn: ``sample(4, classes=["rose", "daisy"])`` gives rose, daisy, rose, daisy.
                None for all classes in turn, or for no class, as the command does.
            steps, guidance_scale: settings of a diffusion model; None for those of ``model.sampling`` in its config.

        Returns:
            (num, C, H, W) in [0, 1].

        Raises:
            UserError: an unknown class, an option that the model does not support, or a damaged latents.safetensors.
        """
        from flowergen.runs.sampling import samples_of  # slow to import

        return Pictures.of(samples_of(self, num, seed, classes, {"steps": steps, "guidance_scale": guidance_scale}))

    def vary(self, x: torch.Tensor, num: int = 10, scale: float | None = None, seed: int = 0) -> Pictures:
        """Decode variations z = mu + sqrt(scale) sigma eps of pictures.

        Args:
            x: (N, C, H, W) in [0, 1].
            num: variations of each picture.
            scale: factor on the posterior's variance; None for one with a visible effect.
            seed: random seed for the noise; variation j uses the same noise for every picture.

        Returns:
            (N num, C, H, W) in [0, 1], those of a picture side by side.

        Raises:
            UserError: no scale has a visible effect, because the decoder ignores its latents.
        """
        from flowergen.evaluation.latent_edits import variations  # slow to import

        return Pictures.of(variations(self.module, x, num, scale, seed)[1].flatten(0, 1))

    def interpolate(self, x: torch.Tensor, num: int = 10) -> Pictures:
        """Decode ``num`` steps on the way from the latent of each picture to that of the next.

        Args:
            x: (N, C, H, W) in [0, 1], N >= 2.
            num: steps of each way, both ends included.

        Returns:
            ((N - 1) num, C, H, W) in [0, 1].

        Raises:
            UserError: there is only one picture.
        """
        from flowergen.evaluation.latent_edits import interpolations  # slow to import

        return Pictures.of(torch.cat(interpolations(self.module, x, num)))

    def img2img(
        self,
        x: torch.Tensor,
        strength: float = 0.6,
        classes: Sequence[str | int] | None = None,
        num: int = 1,
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Add noise to pictures and remove it with a diffusion model (SDEdit, arXiv:2108.01073).

        Args:
            x: (N, C, H, W) in [0, 1].
            strength: fraction of the sampler's steps; 0 gives the reconstruction, 1 a new picture.
            classes: L names or numbers to edit towards; None for no class.
            num: edits for each class.
            seed: random seed for the noise; edit j uses the same noise for all pictures and classes.
            steps, guidance_scale: None for those of ``model.sampling`` in the config.

        Returns:
            (N L num, C, H, W) in [0, 1], those of a picture side by side.

        Raises:
            UserError: the model does not denoise, an unknown class, or an option that the model does not support.
        """
        from flowergen.evaluation import edits  # slow to import

        if not 0 <= strength <= 1:
            raise UserError(f"strength={strength} must be from 0 to 1")
        settings = self._edit_settings(classes, num, seed, steps, guidance_scale)
        return Pictures.of(edits.img2img(settings, x, strength).flatten(0, 2))

    def inpaint(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        classes: Sequence[str | int] | None = None,
        num: int = 1,
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Inpaint a part of pictures with a diffusion model (RePaint, arXiv:2201.09865); the other pixels are unchanged.

        Args:
            x, classes, num, seed, steps, guidance_scale: see ``img2img``.
            mask: (H, W) bool, true where the pictures are inpainted.

        Returns:
            (N L num, C, H, W) in [0, 1], those of a picture side by side.

        Raises:
            UserError: see ``img2img``; or the mask has another size, or the latents have no positions.
        """
        from flowergen.evaluation import edits  # slow to import

        if mask.shape != x.shape[-2:] or mask.dtype != torch.bool:
            raise UserError(f"mask must be a bool tensor of shape {tuple(x.shape[-2:])}")
        settings = self._edit_settings(classes, num, seed, steps, guidance_scale)
        return Pictures.of(edits.inpaint(settings, x, ~mask[None]).flatten(0, 2))

    def invert(
        self,
        x: torch.Tensor,
        classes: Sequence[str | int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Find the noise that pictures are sampled from without a class, and sample from it for the classes.

        Args:
            x, classes, steps, guidance_scale: see ``img2img``; the sampler is deterministic DDIM (arXiv:2010.02502).

        Returns:
            (N L, C, H, W) in [0, 1]; without classes, the reconstructions as nearly as the inversion succeeds.

        Raises:
            UserError: see ``img2img``.
        """
        from flowergen.evaluation import edits  # slow to import

        settings = self._edit_settings(classes, 1, 0, steps, guidance_scale)
        return Pictures.of(edits.invert(settings, x).flatten(0, 2))

    def _edit_settings(
        self, classes: Sequence[str | int] | None, num: int, seed: int, steps: int | None, guidance_scale: float | None
    ) -> "EditSettings":
        from flowergen.evaluation.edits import EditSettings  # slow to import
        from flowergen.runs.sampling import DIFFUSION_OPTIONS, check_sampling, sampling_of

        model = self.module.denoising_model
        if model is None:
            raise UserError("pictures are edited with a diffusion model, and this is none: use vary()")
        config = {**dict.fromkeys(DIFFUSION_OPTIONS), "steps": steps, "guidance_scale": guidance_scale}
        check_sampling(config, self.config["model"], [], {})
        if classes is None:
            labels = [model.num_classes]
        else:
            named = [classes] if isinstance(classes, (str, int)) else classes
            labels = [class_label(name, self.class_names) for name in named]
        if not labels or num < 1:
            raise UserError("classes must name at least one class, or be None, and num must be at least 1")
        return EditSettings(model, torch.tensor(labels), num, seed, sampling_of(config, model))
