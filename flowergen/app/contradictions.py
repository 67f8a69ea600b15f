"""Phase 1 of the checks of ``train``: options that are valid individually but not together."""

from typing import Any

from flowergen.config.check import as_typed, data_options, schema_of
from flowergen.config.schema import VAEGAN, Decoder, LatentDDPM
from flowergen.config.schema_data import HuggingFace
from flowergen.diffusion.combinations import latent_refusal, refusal, sampler_refusal
from flowergen.errors import UserError
from flowergen.picture_shape import PictureShape
from flowergen.quoting import HUB


def contradictions(config: dict[str, Any]) -> None:
    """Raise a ``UserError`` for options that are valid individually but not together."""
    model, data, trainer = config["model"], config["data"], config["trainer"]
    if model.get("reconstruction") == "bce" and model.get("pixel_range") == [-1, 1]:
        raise UserError("model.reconstruction=bce needs pixels in [0, 1]: set model.pixel_range=[0,1]")
    if model.get("sigma") == "learned" and model.get("reconstruction") != "gaussian":
        raise UserError("model.sigma=learned has an effect only with model.reconstruction=gaussian: set both or neither")
    _check_shape(model, data)
    _check_start(config)
    if model.get("guard") == "rollback" and model.get("adversarial_weight") == 0:
        raise UserError("model.guard=rollback needs adversarial training, which model.adversarial_weight=0 switches off")
    if model.get("guard") == "rollback" and not trainer["limit_val_batches"]:
        raise UserError("model.guard=rollback needs validation, which trainer.limit_val_batches=0 switches off")
    if data.get("decode") == "stream" and data.get("device_resident") is True:
        raise UserError(
            "data.device_resident=true keeps the decoded collection on the device, but data.decode=stream decodes it every "
            "time: set only one of them"
        )
    if schema_of(data) is HuggingFace and not data["root"] and data["name"] == "huggingface":
        raise UserError("data=huggingface needs data.name=OWNER/NAME, a repository of the hub, or data.root=DIR")
    if not config["carry_autoencoder"] and not str(config["autoencoder"]).startswith(HUB):
        raise UserError("carry_autoencoder=false needs autoencoder=hub:OWNER/NAME, which later commands can download")
    _check_diffusion(config)
    _check_decoder(config)
    fraction = isinstance(trainer["limit_train_batches"], float) and trainer["limit_train_batches"] < 1
    if fraction and trainer["accumulate_grad_batches"] > 1:
        raise UserError(
            "trainer.limit_train_batches as a fraction may end within an optimiser step of "
            f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} parts: give a number of batches"
        )
    if trainer["compile"] == "cuda_graphs" and trainer["accumulate_grad_batches"] > 1:  # pytorch/pytorch, issue 169545
        raise UserError(
            "trainer.compile=cuda_graphs overwrites the gradients that "
            f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} would add up: set it to 1, or use "
            "trainer.compile=true"
        )
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    parts = devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    if data.get("batch_size", parts) != "auto" and data.get("batch_size", parts) % parts:
        raise UserError(
            f"data.batch_size={data['batch_size']} counts the pictures of an optimiser step and must be a multiple of "
            f"{devices * trainer['num_nodes']} device(s) x trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}"
        )
    never = not trainer["budget"] and trainer["check_val_every_n_epoch"] > trainer["max_epochs"]
    if trainer["limit_val_batches"] and never:
        raise UserError(
            f"trainer.check_val_every_n_epoch={trainer['check_val_every_n_epoch']} is never reached within "
            f"trainer.max_epochs={trainer['max_epochs']}: lower it, or switch validation off with trainer.limit_val_batches=0"
        )


def _check_shape(model: dict[str, Any], data: dict[str, Any]) -> None:
    """Check that the model is built for the pictures."""
    for key, data_key, default in (("image_size", "image_size", None), ("image_channels", "channels", 3)):
        expected = data.get(data_key, default)
        if model.get(key, expected) != expected:
            raise UserError(
                f"model.{key}={as_typed(model[key])} and data.{data_key}={as_typed(expected)} must be equal: "
                f"set only data.{data_key}, which the model reads"
            )
    factor = (model.get("latent") or {}).get("factor")
    if not isinstance(factor, int) or model.get("pretrained"):
        return
    size = data.get("image_size", 0)
    _, *sides = PictureShape.of(size)
    if any(side % factor for side in sides):
        smaller = [side - side % factor for side in sides]
        larger = [side + -side % factor for side in sides]
        nearest = [as_typed(PictureShape.of(sides).image_size) for sides in (smaller, larger) if all(sides)]
        raise UserError(
            f"model.latent.factor={factor} does not divide data.image_size={as_typed(size)}: "
            f"use pictures of {' or '.join(nearest)} px, or another factor"
        )


def _check_start(config: dict[str, Any]) -> None:
    """Check ``pretrained`` and ``freeze`` of a VAE-GAN."""
    model = config["model"]
    if schema_of(model) is not VAEGAN:
        return
    pretrained = model.get("pretrained")
    if pretrained and not config["init"]:
        raise UserError("model.pretrained is set by init=: give init=hub:OWNER/NAME, or the folder of such an autoencoder")
    if pretrained and model["beta"] and pretrained["kind"] != "AutoencoderKL":
        raise UserError(
            f"model.beta={model['beta']:g} weighs a KL, but the latents of {model['pretrained']['kind']} have no variance: "
            "set model.beta=0"
        )
    if model.get("freeze", "none") == "none":
        return
    if not config["init"]:
        raise UserError("model.freeze=encoder keeps the encoder's weights, which are random without init=: add init=RUN")
    for key in ("class_weight", "center_weight"):
        if model[key]:
            raise UserError(f"model.{key}={model[key]:g} trains the encoder, which model.freeze=encoder excludes: set it to 0")


def _check_decoder(config: dict[str, Any]) -> None:
    model, diffusion = config["model"], config.get("diffusion")
    if schema_of(model) is not Decoder:
        if diffusion and schema_of(model):
            raise UserError("diffusion= is only for model=decoder: leave it out")
        return
    if diffusion in (None, "none"):
        raise UserError(
            "model=decoder needs a trained latent diffusion model: first run  python -m flowergen.train model=latent_ddpm "
            f"{data_options(config['data'])} autoencoder=RUN  and give its run folder, diffusion=RUN"
        )


def _check_diffusion(config: dict[str, Any]) -> None:
    model, autoencoder = config["model"], config.get("autoencoder")
    if schema_of(model) is not LatentDDPM:
        if autoencoder and schema_of(model):
            raise UserError("autoencoder= is only for model=latent_ddpm: leave it out")
        return
    if not autoencoder:
        raise UserError(
            "model=latent_ddpm needs a trained autoencoder: first run  python -m flowergen.train model=vae_gan "
            f"{data_options(config['data'])}  and give its run folder, autoencoder=RUN (or none, for diffusion on pixels)"
        )
    reason = refusal(model["objective"], model["zero_terminal_snr"], model["time_sampling"], model["weighting"])
    reason = reason or (latent_refusal(model["objective"], model["schedule"]) if autoencoder != "none" else None)
    if reason:
        raise UserError(f"model.objective={model['objective']}: {reason}")
    for key in ("random_resized_crop", "color_jitter"):
        if autoencoder != "none" and model["latent_cache"] and config["data"].get(key):
            raise UserError(
                f"data.{key} augments pictures, but model.latent_cache=true encodes each of them only once: "
                f"set model.latent_cache=false, or leave data.{key} out"
            )
    if model["alignment_weight"] and (autoencoder == "none" or not model["latent_cache"]):
        raise UserError(
            f"model.alignment_weight={model['alignment_weight']:g} needs features that are cached with the latents: "
            "set autoencoder=RUN and model.latent_cache=true"
        )
    if model["class_dropout"] == 0 and model["sampling"]["guidance_scale"] != 1:
        raise UserError(
            "model.class_dropout=0 does not train the prediction without a class, which guidance needs: "
            "set model.sampling.guidance_scale=1 as well, or class_dropout=0.1"
        )
    sampler = model["sampling"]["sampler"]
    reason = sampler_refusal(model["objective"], sampler)
    if reason:
        raise UserError(f"model.sampling.sampler={sampler}: {reason}")
    if model["objective"] != "flow" and model["sampling"]["steps"] > model["num_timesteps"]:
        raise UserError(
            f"model.sampling.steps={model['sampling']['steps']} is more than model.num_timesteps={model['num_timesteps']}"
        )
