import pytest

from flowergen.app.train_command import checked
from flowergen.errors import UserError

PIXELS = ("model=latent_ddpm", "autoencoder=none")
FLOW = ("model.objective=flow",)
CONTRADICTIONS = {
    ("model.reconstruction=bce", "model.pixel_range=[-1,1]"): "pixel_range",
    ("model.sigma=learned",): "gaussian",
    ("data.batch_size=9", "trainer.accumulate_grad_batches=2"): "multiple",
    ("data.batch_size=9", "trainer=ddp_cpu"): "multiple",
    ("trainer.compile=cuda_graphs", "trainer.accumulate_grad_batches=2"): "accumulate_grad_batches=2 .*trainer.compile=true",
    ("trainer.check_val_every_n_epoch=3", "trainer.max_epochs=2"): "never",
    ("data=image_folder", "data.root=/no/such/folder"): "not an existing folder",
    ("data=image_folder", "data.root="): "must be a folder",
    ("data.decode=stream", "data.device_resident=true"): "set only one of them",
    ("model.image_size=32",): "model.image_size=32 and data.image_size=64 must be equal: set only data.image_size",
    ("data.image_size=[48,64]", "model.image_size=64"): r"model.image_size=64 and data.image_size=\[48,64\] must be equal",
    ("model.image_channels=1",): "model.image_channels=1 and data.channels=3 must be equal: set only data.channels",
    ("model=vae_gan", "data.image_size=60", "model.latent.factor=8"): "data.image_size=60: use pictures of 56 or 64 px, or",
    ("model=vae_gan", "data.image_size=[48,60]", "model.latent.factor=8"): r"use pictures of \[48,56\] or \[48,64\] px",
    ("model=latent_ddpm",): r"python -m flowergen\.train model=vae_gan data=procedural .*autoencoder=RUN",
    ("model=latent_ddpm", "autoencoder=null"): "needs a trained autoencoder",
    ("experiment=ldm_tiny",): "needs a trained autoencoder",
    ("autoencoder=none",): "autoencoder= is only for model=latent_ddpm: leave it out",
    ("model=vae_gan", "autoencoder=none"): "autoencoder= is only for model=latent_ddpm: leave it out",
    (*PIXELS, "model.objective=eps", "model.zero_terminal_snr=true"): "model.objective=eps: .*use v or x0",
    (*PIXELS, "model.weighting=min_snr", "model.zero_terminal_snr=true"): "model.objective=v: min_snr gives",
    (*PIXELS, *FLOW, "model.weighting=min_snr"): "model.objective=flow: min_snr",
    (*PIXELS, *FLOW, "model.zero_terminal_snr=true"): "model.objective=flow: .*pure noise anyway",
    (*PIXELS, "model.time_sampling=logit_normal"): "model.objective=v: logit_normal",
    (*PIXELS, "model.class_dropout=0"): "model.class_dropout=0 .*guidance_scale=1",
    (*PIXELS, "model.network=dit"): "model.network=dit must be a group of keys: set model/network=unet or dit",
    (*PIXELS, "model.sampling.sampler=euler"): "model.sampling.sampler=euler: .*follows a flow",
    (*PIXELS, "model.sampling.sampler=heun"): "model.sampling.sampler=heun: .*follows a flow",
    (*PIXELS, "model.sampling.steps=200", "model.num_timesteps=100"): "steps=200 is more than model.num_timesteps=100",
}
RIGHT = [
    ("trainer.compile=cuda_graphs",),
    ("trainer.budget=1h30min", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=3"),
    ("data.batch_size=auto", "trainer.accumulate_grad_batches=3"),
    ("data.decode=stream", "data.color_jitter=0.3", "data.random_resized_crop=[0.5,1]"),
    ("data.image_size=[48,64]", "data.channels=1", "data.fit=pad"),
    ("model=vae_gan", "data.image_size=[48,64]", "data.channels=1", "model.latent.factor=8"),
    ("model=vae_gan", "data.image_size=[64,64]", "model.image_size=64"),
    (*PIXELS, "data.image_size=[8,512]", "data.channels=1"),
    (*PIXELS, "data.color_jitter=0.3", "data.random_resized_crop=[0.5,1]"),
    (*PIXELS, "model.objective=eps", "model.weighting=min_snr"),
    (*PIXELS, "model.objective=x0", "model.zero_terminal_snr=true"),
    (*PIXELS, *FLOW, "model.time_sampling=logit_normal", "model.sampling.sampler=heun"),
    (*PIXELS, *FLOW, "model.sampling.sampler=ddim"),
    (*PIXELS, *FLOW, "model.sampling.steps=200", "model.num_timesteps=100"),
    (*PIXELS, "model.sampling.sampler=ddpm", "model.sampling.steps=1000"),
    (*PIXELS, "model/network=dit", "model.network.patch_size=4", "model.ema_decay=null"),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS.items())
def test_options_that_are_right_alone_and_wrong_together(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked(overrides)


@pytest.mark.parametrize("overrides", RIGHT)
def test_options_that_are_right_together_pass(overrides: tuple[str, ...]) -> None:
    checked(overrides)
