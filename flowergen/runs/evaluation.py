"""Translate the options of ``evaluate`` into an evaluation subject, and measure it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from flowergen.config import conf_dir
from flowergen.data.listing import list_image_folder
from flowergen.data.reading import UnreadablePicture, read_rgb
from flowergen.errors import UserError, printable
from flowergen.evaluation import card
from flowergen.evaluation.copies import COPY_RATIO, DUPLICATE_SHARE, QUANTILE
from flowergen.evaluation.measure import floor_subsets, measure_denoising, measure_reconstructions, measure_samples
from flowergen.evaluation.measured import Measured
from flowergen.evaluation.networks import EvaluationNetworks, load_evaluation_networks
from flowergen.evaluation.pictures import (
    Generated,
    PicturesFromFiles,
    RealPictures,
    Sampled,
    enough,
    picture_folder,
    real_pictures_in,
    real_pictures_of,
    repeated,
)
from flowergen.evaluation.reconstruction import reconstruction_scores
from flowergen.evaluation.reference import PreparedReference
from flowergen.evaluation.sampling import NO_CLASS
from flowergen.modules.fingerprint import fingerprint
from flowergen.modules.image_model import ImageModel
from flowergen.modules.pretrained_weights import VGG16_URL, vgg16_path
from flowergen.picture_shape import PictureShape
from flowergen.runs.loading import build_datamodule_of_run, load_run
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.sampling import batch_size_of, fast_denoiser, latent_sampler, stored_latents

log = logging.getLogger(__name__)

MAX_SAMPLES = 10_000  # per repeat, unless num_samples= is larger
MIN_PX, MAX_PX = 16, 1024  # limits of image_size=


@dataclass
class Subject:
    """The pictures to evaluate, with the networks and settings of the evaluation."""

    described: dict[str, Any]  # the source of the pictures, for the card
    protocol: dict[str, Any]  # settings that must be equal for two cards to be comparable
    generated: Generated
    real: RealPictures  # to compare them with
    networks: EvaluationNetworks
    num: int  # generated pictures per repeat
    repeats: int
    seed: int  # of the sampling
    model: ImageModel | None  # of the run; None for folders
    step: int  # optimiser steps of the model
    weights_dir: str  # folder of pretrained weights

    @property
    def hash(self) -> str:
        """Hash of the subject and the protocol."""
        return card.hash_of(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the card in a folder, with or without LPIPS, whose weights may be added later."""
        with_lpips = self.model is not None and vgg16_path(self.weights_dir).is_file()
        return {"protocol": self.protocol, "subject": self.described, "lpips": with_lpips}

    @property
    def probe(self) -> dict[str, Any] | None:
        """Fingerprint of the picture classifier, and its accuracy on held-out pictures."""
        probe = self.networks.probe
        return {"weights": probe.fingerprint, "accuracy": probe.accuracy} if probe else None

    @property
    def counts(self) -> dict[str, int]:
        """Number of pictures behind each column of the card, per repeat."""
        held_out, train = len(self.real.reference), min(self.num, len(self.real.train)) if self.real.train else 0
        of_train = dict.fromkeys(("train", "autoencoder", "samples_as_floor"), train)
        return {"samples": self.num, "reference": held_out, **of_train, "held_out": held_out}


def subject_of_run(config: dict[str, Any], run: RunFolder) -> Subject:
    """Return the subject for a run's model, compared with its own data, from the config of the command.

    Raises:
        UserError: the data was moved or changed, or an extractor is unavailable.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_run(config["run"], str(device))
    module = model.module
    data = build_datamodule_of_run(model, config["data"]["root"], config["paths"]["cache_dir"])
    real = real_pictures_of(data, config["num_samples"] or MAX_SAMPLES)
    weights_dir = config["paths"]["weights_dir"] or model.config["paths"]["weights_dir"]
    networks = load_evaluation_networks(config["extractor"], real, data.name, data.cache_dir, weights_dir, device)

    num, repeats = config["num_samples"] or len(real.reference), config["repeats"]
    reference_labels = real.reference.labels[real.reference.rows]
    by_class = module.denoises and len(model.class_names) > 0
    classes = repeated(reference_labels, num) if by_class else np.full(num, NO_CLASS)
    labels = torch.from_numpy(np.tile(classes, repeats).astype(np.int64))
    sampler = latent_sampler(config, model, stored_latents(model), False, fast_denoiser(model, len(labels)))
    batch_size, auto = batch_size_of(config, device.type == "cuda")
    generated = Sampled(sampler, labels, batch_size, auto)
    step, decoder = module.optimizer_steps, {}
    if module.autoencoder and module.decoder_steps is not None:
        step, decoder = module.decoder_steps, {"decoder": fingerprint(module.autoencoder.inference_net)}
    described = {
        "what": "/".join(run.path.parts[-2:]),
        "checkpoint": Path(config["run"]).name if str(config["run"]).endswith(".ckpt") else None,
        "model": f"{type(module).__name__}: {module.summary()}",
        "weights": fingerprint(module.inference_net),
        **decoder,
        "optimiser steps": module.optimizer_steps,
        "sampled by": sampler.description,
        "classes": "those of the reference pictures" if by_class else "none",
        "denoising": module.denoising_task,
    }
    protocol = _protocol(real, num, repeats, config["seed"], module.picture_shape, networks)
    drawn = (num, repeats, config["seed"])
    return Subject(described, protocol, generated, real, networks, *drawn, module, step, weights_dir)


def subject_of_folders(config: dict[str, Any]) -> Subject:
    """Return the subject for a folder of pictures, compared with those of others, from the config of the command.

    Raises:
        UserError: a folder holds too few pictures, or they cannot be decoded.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    defaults: Any = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "paths" / "default.yaml"), resolve=True)
    paths = {key: os.path.expanduser(config["paths"][key] or defaults[key]) for key in ("cache_dir", "weights_dir")}
    cache_dir, size = Path(paths["cache_dir"]), config["image_size"]
    shape = PictureShape.of(size) if size else _shape_of_first(config["generated"])
    real = real_pictures_in(config["reference"], config["train"], shape, cache_dir)
    pictures, names, key = picture_folder(config["generated"], "generated", shape, cache_dir)
    enough(pictures)
    batch_size, _ = batch_size_of(config, device.type == "cuda")
    generated = PicturesFromFiles(pictures, names, real.class_names, batch_size)
    networks = load_evaluation_networks(config["extractor"], real, "train_folder", cache_dir, paths["weights_dir"], device)
    described = {"what": pictures.name, "folder": config["generated"], "pictures": key}
    protocol = _protocol(real, len(pictures), 1, None, shape, networks)
    return Subject(described, protocol, generated, real, networks, len(pictures), 1, 0, None, 0, paths["weights_dir"])


def measure(subject: Subject, work: Path) -> Measured:
    """Compute all metrics that apply, with intermediate results in ``work``; what cannot be measured is logged before.

    Raises:
        UserError: the disk is full.
    """
    measured, model, real = Measured(missing=list(subject.networks.missing)), subject.model, subject.real
    trained_with = model.features_trained_with if model else None
    measured.notes += [real.note] if real.note else []
    measured.notes += [*subject.networks.notes, *subject.networks.note_on_training(trained_with)]
    autoencoder = model.autoencoder if model else None
    if autoencoder is not None and not vgg16_path(subject.weights_dir).is_file():
        measured.missing.append(f"LPIPS: put {VGG16_URL} into {vgg16_path(subject.weights_dir).parent} (paths.weights_dir)")
    for line in [*measured.notes, *(f"not measured: {what}" for what in measured.missing)]:
        log.info(line)
    if autoencoder is not None:
        for name, value in reconstruction_scores(autoencoder, real.reference, subject.weights_dir, subject.seed).items():
            measured.add(name, "reference", value)
    if model and model.denoising_model:
        measure_denoising(model.denoising_model, real, subject.seed, measured)
    prepared = PreparedReference(real, subject.networks, measured.notes)
    measure_samples(subject.generated, prepared, subject.num, subject.repeats, work, measured)
    if autoencoder is not None:
        by_class = bool((subject.generated.labels >= 0).all())
        measure_reconstructions(
            autoencoder, prepared, floor_subsets(real, subject.num, subject.repeats, by_class), work, measured
        )
    return measured


def _protocol(
    real: RealPictures, num: int, repeats: int, seed: int | None, shape: PictureShape, networks: EvaluationNetworks
) -> dict[str, Any]:
    network = networks.extractor
    return {
        "version": card.VERSION,
        "pictures": real.identity,
        "pixels": real.pixels,
        "reference": real.reference.name,
        "num_reference": len(real.reference),
        "image_size_px": shape.image_size,
        **({} if shape.channels == 3 else {"image_channels": shape.channels}),
        "num_samples": num,
        "repeats": repeats,
        "seed": seed,
        "extractor": networks.name if network is None else network.name,
        "extractor_weights": network.weights if network else "missing",
        "resize": network.resize if network else None,
        "mirror_images": real.mirrored,
        "nearest_neighbours": 3,
        "copy_ratio": round(COPY_RATIO, 4),
        "copy_quantile": QUANTILE,
        "duplicate_share": DUPLICATE_SHARE,
    }


def _shape_of_first(folder: str) -> PictureShape:
    listing = list_image_folder(Path(folder), "generated")
    try:
        height, width, _ = read_rgb(Path(folder) / listing.names[0]).shape
    except UnreadablePicture as error:
        raise UserError(
            f"generated: {printable(listing.names[0])} cannot be read ({error}): repair or remove it, or give image_size="
        ) from error
    shape = PictureShape.of((height, width))
    if not MIN_PX <= shape.short_side <= max(height, width) <= MAX_PX:
        raise UserError(
            f"generated: {printable(listing.names[0])} has {shape}: give image_size=, {MIN_PX} to {MAX_PX} px a side"
        )
    return shape
