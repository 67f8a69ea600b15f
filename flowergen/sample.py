"""``python -m flowergen.sample``: generate pictures from a trained model, and show the denoising process."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Sample
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.machine_limits import out_of_memory_as_user_error
from flowergen.runs.run_folder import find_run
from flowergen.runs.run_page import write_page
from flowergen.runs.sampling import batch_size_of, check_sampling, fast_denoiser, latent_sampler, sampling_of, stored_latents

if TYPE_CHECKING:
    from torch import Tensor

    from flowergen.evaluation.latent_store import LatentStore
    from flowergen.runs.loaded_model import LoadedModel

MAX_CLASSES = 16  # sampled if none are given; also the number whose denoising is shown
DEFAULT_NUM = 64  # for a model without classes


@out_of_memory_as_user_error("; use fewer pictures at a time with batch_size=, or denoising=false")
def main() -> None:
    """Check the options, load the model, write the pictures, and print where they are."""
    config = read_command_line("sample", Sample, sys.argv[1:])
    run, _ = find_run(config["run"])
    stored = run.sampling_folder.read_config()["model"]
    _contradictions(config, stored, sys.argv[1:])

    import torch

    import flowergen

    classes = _classes(config)  # before the model is loaded, which takes longer
    model = flowergen.load(config["run"], "cuda" if torch.cuda.is_available() else "cpu")
    store = stored_latents(model)
    labels = _labels(config, classes, model, store)
    with output_folder(config["out"], run.path / "samples" / f"seed{config['seed']}") as folder:
        lines = _write(config, model, store, labels, folder)
    if config["out"] is None:
        with suppress(OSError):  # the pictures exist anyway
            lines.append(f"page: {printable(str(write_page(run)))}")
    for line in [*lines, f"pictures: {printable(str(folder))}"]:
        print(line)


def _contradictions(config: dict[str, Any], stored: dict[str, Any], typed: list[str]) -> None:
    """Check the options against each other and against the run's config, before the model is loaded."""
    if config["num"] and config["classes"]:
        raise UserError("classes= is used with num_per_class=, and num= is for all classes together: give only one of them")
    if config["class_frequencies"] == "train" and not config["num"]:
        raise UserError("class_frequencies=train sets the class frequencies of num= pictures: give num=")
    own = stored.get("sampling")
    if config["classes"] and config["source"] != "auto":
        raise UserError("classes= draws from a Gaussian for each class, and source= is for all classes together: leave one out")
    if not own and config["class_frequencies"] == "train":
        raise UserError("class_frequencies=train is for diffusion models: for a VAE, choose classes with classes=")
    check_sampling(config, stored, typed, {"num_per_class": "classes="} if config["num"] else {})


def _classes(config: dict[str, Any]) -> list[int] | None:
    """Return the labels of ``classes=``; None without it."""
    from flowergen.data.class_names import class_labels
    from flowergen.runs.loading import class_names_of

    if config["classes"] is None:
        return None
    names = class_names_of(config["run"])
    if not names:
        raise UserError("classes=: this model was trained without classes; give num= instead")
    return class_labels(str(config["classes"]), names)


def _labels(config: dict[str, Any], classes: list[int] | None, model: "LoadedModel", store: "LatentStore | None") -> "Tensor":
    """Return the class of every sample (N,), -1 for none."""
    from flowergen.evaluation.sampling import labels_by_frequency, labels_of_classes

    if classes is not None:
        return labels_of_classes(classes, config["num_per_class"])
    names = model.class_names
    conditional = len(names) > 0 and model.module.denoises
    if config["num"] or not conditional:
        counts = store.class_counts if store and config["class_frequencies"] == "train" else None
        if config["class_frequencies"] == "train" and (counts is None or not counts.sum()):
            raise UserError("class_frequencies=train: the run has stored no classes of its training pictures")
        return labels_by_frequency(config["num"] or DEFAULT_NUM, len(names) if conditional else 0, counts, config["seed"])
    shown = range(len(names)) if len(names) <= MAX_CLASSES else range(0, len(names), -(-len(names) // 8))
    return labels_of_classes(list(shown), config["num_per_class"])


def _write(
    config: dict[str, Any], model: "LoadedModel", store: "LatentStore | None", labels: "Tensor", folder: Path
) -> list[str]:
    from flowergen.evaluation import sample_files, sampling

    module, seed = model.module, config["seed"]
    net = fast_denoiser(model, len(labels)) if config["precision"] == "trained" else None
    sampler = latent_sampler(config, model, store, config["classes"] is not None, net)
    batch_size, auto = batch_size_of(config, module.device.type == "cuda")
    batches = sampling.pictures(sampler, labels, batch_size, halve=auto)
    lines = sample_files.write_samples(folder, batches, labels, model.class_names, module.picture_shape, seed, config["format"])
    if module.denoising_model and config["denoising"]:
        first = sampling.group_starts(labels)[:MAX_CLASSES] if config["num"] is None else [0]
        labelled = (first, labels[first], model.class_names)
        settings = sampling_of(config, module.denoising_model)
        lines += sample_files.write_denoising(
            folder, module.denoising_model, settings, *labelled, seed, store, min(batch_size, 16), net
        )
    return [sampler.description, *lines]


if __name__ == "__main__":
    one_line_errors(main)
