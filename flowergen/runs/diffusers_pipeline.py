"""A latent diffusion run as a pipeline of diffusers. ``runs.diffusers_folder`` writes it into the pipeline's folder.

Source: flowergen, MIT licence.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from flowergen.data.class_names import class_label
from flowergen.diffusion.combinations import sampler_refusal
from flowergen.diffusion.guidance import guided_prediction
from flowergen.diffusion.objective import predictions
from flowergen.diffusion.samplers import SAMPLERS, ddim
from flowergen.diffusion.schedule import Level, schedule_of


class LatentDiffusionPipeline(DiffusionPipeline):
    """Sample pictures, by class if the model was trained with classes.

    Args:
        vae: an autoencoder of diffusers.
        denoiser: see ``Denoiser``.
        training: ``objective``, ``schedule``, ``num_timesteps``, ``zero_terminal_snr`` and ``class_dropout`` of the training.
        sampling: defaults: ``sampler``, ``steps``, ``guidance_scale``, ``guidance_interval`` and ``eta``.
    """

    def __init__(
        self,
        vae: ModelMixin,
        denoiser: ModelMixin,
        training: dict[str, Any] | None = None,  # diffusers takes every argument without a default for a model
        sampling: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, denoiser=denoiser)
        self.register_to_config(training=training, sampling=sampling)

    @torch.no_grad()
    def __call__(
        self,
        classes: str | int | Sequence[str | int] | None = None,
        num_images: int | None = None,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample pictures.

        Args:
            classes: names or numbers, used in turn; None for all classes in turn.
            num_images: N; by default as many as there are ``classes``, or 1.
            sampler: dpmpp_2m, ddim, ddpm, euler or heun, the last two for the objective flow.
            num_inference_steps: steps of the sampler.
            guidance_scale: 1 for no guidance.
            generator: generator of the noise, or one for each picture.
            latents: (N, C, h, w) the noise to start from, N(0, I); drawn by default.
            output_type: pil, np for (N, H, W, C) or pt for (N, C, H, W), both in [0, 1].

        Returns:
            An object whose ``images`` are the pictures.

        Raises:
            ValueError: the model does not support an option.
            UserError: there is no such class.
        """
        trained, default = self.config.training, self.config.sampling
        names, device = self.denoiser.config.class_names, self._execution_device
        sampler = sampler or default["sampler"]
        scale = (default["guidance_scale"] if guidance_scale is None else guidance_scale) if names else 1
        known = f"choose one of {', '.join(SAMPLERS)}"
        reason = sampler_refusal(trained["objective"], sampler) if sampler in SAMPLERS else known
        if reason:
            raise ValueError(f"sampler={sampler}: {reason}")
        if scale != 1 and not trained["class_dropout"]:
            raise ValueError(f"guidance_scale={scale}: the model was trained without class dropout: give 1")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type}: give pil, np or pt")
        if classes is None:
            chosen = list(range(len(names))) or [0]  # without classes, label 0 is "no class"
        else:
            chosen = [class_label(name, names) for name in ([classes] if isinstance(classes, (str, int)) else classes)]
        num = num_images or (1 if classes is None else len(chosen))
        label = torch.tensor(chosen)[torch.arange(num) % len(chosen)].to(device)
        shape = (num, *self.denoiser.config.shape)
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents of {tuple(latents.shape)}: {shape} are needed")

        def noise(step: int) -> Tensor:
            return randn_tensor(shape, generator=generator, device=device)

        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            low, high = default["guidance_interval"]
            output = guided_prediction(
                self.denoiser, x, level.t, label, len(names), scale, (low, high), trained["num_timesteps"]
            )
            return predictions(trained["objective"], output, x, level.alpha, level.sigma)

        schedule = schedule_of(
            trained["objective"], trained["schedule"], trained["num_timesteps"], trained["zero_terminal_snr"]
        )
        levels = schedule.levels(num_inference_steps or default["steps"])
        denoise = partial(ddim, eta=default["eta"]) if sampler == "ddim" else SAMPLERS[sampler]
        start = noise(0) if latents is None else latents.to(device)
        with self.progress_bar(total=len(levels) - 1) as bar:
            for x, _ in denoise(predict, start, levels, noise):  # noqa: B007  the last one is the sample
                bar.update()
        z = x * self.denoiser.latent_std + self.denoiser.latent_mean
        pictures = ((self.vae.decode(z.to(self.vae.dtype)).sample + 1) / 2).clamp(0, 1)
        if output_type == "pt":
            return ImagePipelineOutput(images=pictures)
        rows = pictures.permute(0, 2, 3, 1).float().cpu().numpy()
        return ImagePipelineOutput(images=rows if output_type == "np" else self.numpy_to_pil(rows))
