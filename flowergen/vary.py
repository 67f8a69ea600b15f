"""``python -m flowergen.vary``: variations and edits of given pictures, and walks through the latent space of a run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Vary
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.machine_limits import out_of_memory_as_user_error
from flowergen.runs.run_folder import find_run
from flowergen.runs.sampling import check_sampling

if TYPE_CHECKING:
    from torch import Tensor

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.runs.loaded_model import LoadedModel

EDITS = ("img2img", "inpaint", "invert")  # modes for diffusion models
MODES_OF_KEY = {  # keys that only some modes read
    "num": ("variations", "interpolate", "traverse", "arithmetic", "img2img", "inpaint"),
    "scale": ("variations",),
    "seed": ("variations", "img2img", "inpaint"),
    "num_dims": ("traverse",),
    "plus": ("arithmetic",),
    "minus": ("arithmetic",),
    "strength": ("img2img",),
    "mask": ("inpaint",),
    **dict.fromkeys(("classes", "sampler", "steps", "guidance_scale", "guidance_interval", "eta"), EDITS),
}
MAX_FOR_MEAN = 1000  # pictures of a class, at most
MAX_NAME_LENGTH = 50  # characters of a picture's name in its file names: at most 4 bytes each, and file systems allow 255 bytes
MAX_VALUES = 2**29  # pixel values generated at once: 2 GiB in float32, and twice as much with the grid


@out_of_memory_as_user_error("; use fewer at once with num= or num_pictures=")
def main() -> None:
    """Check the options, load the model, write the pictures, and print where they are."""
    config = read_command_line("vary", Vary, sys.argv[1:])
    run, _ = find_run(config["run"])
    _contradictions(config, run.sampling_folder.read_config()["model"], sys.argv[1:])

    import torch

    import flowergen
    from flowergen.runs.loading import build_datamodule_of_run

    classes = _classes(config)  # before the model is loaded, which takes longer
    model = flowergen.load(config["run"], "cuda" if torch.cuda.is_available() else "cpu")
    data = None
    if config["split"] or config["mode"] == "arithmetic":
        data = build_datamodule_of_run(model, config["data"]["root"], config["paths"]["cache_dir"])
    x, names, source = _pictures(config, model, data)
    labels = classes if config["mode"] in EDITS else []
    if x.numel() * (config["num"] * max(1, len(labels)) + 2) > MAX_VALUES:
        raise UserError(f"{len(x)} pictures x num={config['num']} are too many at once: lower num= or num_pictures=")
    direction = None
    if config["mode"] == "arithmetic":
        assert data is not None
        plus, minus = (_class_mean(label, model, data) for label in classes)
        direction = plus - minus
    with output_folder(config["out"], run.path / "vary" / f"{config['mode']}_{source}") as folder:
        if config["mode"] in EDITS:
            lines = _edit(config, model, labels, x, names, folder)
        else:
            lines = _latent_edit(config, model, direction, x, names, folder)
    print(*lines, f"pictures: {printable(str(folder))}", sep="\n")


def _contradictions(config: dict[str, Any], stored: dict[str, Any], typed: list[str]) -> None:
    mode = config["mode"]
    if mode in EDITS:
        if "sampling" not in stored:
            raise UserError(f"mode={mode} edits pictures with a diffusion model, and this run has none: use mode=variations")
        check_sampling(config, stored, [], {})
    if mode == "inpaint" and not config["mask"]:
        raise UserError("mode=inpaint needs mask=FILE, a picture that is white where the given one is to be replaced")
    if config["image"] and config["split"]:
        raise UserError("image= and split= both select the pictures: give only one of them")
    if not config["image"] and not config["split"]:
        raise UserError("give the pictures: image=FILE, image=DIR, or split=test for those of the run's own data")
    if mode == "arithmetic" and (config["plus"] is None or config["minus"] is None):
        raise UserError("mode=arithmetic adds one class's mean and subtracts another's: give plus=CLASS minus=CLASS")
    for key, modes in MODES_OF_KEY.items():
        if mode not in modes and any(argument.startswith(f"{key}=") for argument in typed):
            print(f"{key}= has no effect here: it is for mode={' or '.join(modes)}", file=sys.stderr)


def _pictures(config: dict[str, Any], model: "LoadedModel", data: "ImageDataModule | None") -> "tuple[Tensor, list[str], str]":
    """Return pictures (N, C, H, W) in [0, 1], a file name stem for each, and a name for their source."""
    import numpy as np
    import torch

    from flowergen.data.image_datamodule import evenly_spaced
    from flowergen.data.listing import list_image_folder
    from flowergen.data.reading import UnreadablePicture, read_rgb

    most = config["num_pictures"]
    if config["split"]:
        assert data is not None
        rows = evenly_spaced(data.rows[config["split"]], most)
        if not len(rows):
            raise UserError(f"split={config['split']}: the run's data has no such pictures (data.split={data.split})")
        names = [f"{row:06d}_{_stem(data.names[row])}" for row in rows]
        return data.pictures[rows.tolist()].image.float() / 255, names, config["split"]

    path = Path(config["image"])
    files = [path]
    if not path.is_file():
        found = list_image_folder(path, "image").names
        files = [path / found[row] for row in evenly_spaced(np.arange(len(found)), most)]
    images, names = [], []
    for number, file in enumerate(files):
        try:
            images.append(torch.from_numpy(model.fitted(read_rgb(file))))
        except UnreadablePicture as error:
            if len(files) == 1:
                raise UserError(f"image={printable(str(file))} cannot be read: {printable(str(error))}") from error
            print(f"left out {printable(str(file))}: {printable(str(error))}", file=sys.stderr)
            continue
        names.append(_stem(file) if len(files) == 1 else f"{number:03d}_{_stem(file)}")
    if not images:
        raise UserError(f"image={printable(str(path))}: none of {len(files)} pictures can be read")
    return torch.stack(images).float() / 255, names, _stem(path)


def _stem(path: str | Path) -> str:
    return Path(path).stem[:MAX_NAME_LENGTH]


def _latent_edit(
    config: dict[str, Any], model: "LoadedModel", direction: "Tensor | None", x: "Tensor", names: list[str], folder: Path
) -> list[str]:
    from flowergen.evaluation import latent_edits

    module, num = model.module, config["num"]
    if config["mode"] == "reconstruct":
        return latent_edits.reconstruct(module, x, names, folder)
    if config["mode"] == "interpolate":
        return latent_edits.interpolate(module, x, folder, num)
    if config["mode"] == "traverse":
        return latent_edits.traversals(module, x, names, folder, num, config["num_dims"])
    if direction is not None:
        return latent_edits.arithmetic(module, x, names, folder, num, direction)
    scale = None if config["scale"] == "auto" else config["scale"]
    return latent_edits.vary(module, x, names, folder, num, scale, config["seed"])


def _classes(config: dict[str, Any]) -> list[int]:
    """Return the labels of ``plus=`` and ``minus=``, or of the classes to edit towards: without any, the label of no class."""
    from flowergen.data.class_names import class_label, class_labels
    from flowergen.runs.loading import class_names_of

    if config["mode"] not in (*EDITS, "arithmetic"):
        return []
    class_names = class_names_of(config["run"])
    if config["mode"] == "arithmetic":
        return [class_label(config[key], class_names) for key in ("plus", "minus")]
    if config["classes"] is None:
        return [len(class_names)]
    if not class_names:
        raise UserError("classes=: this model was trained without classes; leave them out")
    return class_labels(str(config["classes"]), class_names)


def _edit(
    config: dict[str, Any], model: "LoadedModel", labels: list[int], x: "Tensor", names: list[str], folder: Path
) -> list[str]:
    import torch

    from flowergen.evaluation import edits
    from flowergen.runs.sampling import sampling_of

    diffusion, mode = model.module.denoising_model, config["mode"]
    assert diffusion is not None
    settings = edits.EditSettings(
        diffusion, torch.tensor(labels), config["num"], config["seed"], sampling_of(config, diffusion)
    )
    if mode == "img2img":
        edited = edits.img2img(settings, x, config["strength"])
    elif mode == "inpaint":
        edited = edits.inpaint(settings, x, _known(config["mask"], model))
    else:
        edited = edits.invert(settings, x)
    class_names = [*model.class_names, "no class"]
    return edits.write(settings, x, edited, mode, names, [class_names[label] for label in labels], folder)


def _known(mask: str, model: "LoadedModel") -> "Tensor":
    """Return the pixels to keep, (1, H, W) bool: those that are not white in the mask, which is fitted as pictures are."""
    import torch

    from flowergen.data.reading import UnreadablePicture, read_rgb

    try:
        white = torch.from_numpy(model.fitted(read_rgb(Path(mask)))).float().mean(0, keepdim=True) > 127.5
    except UnreadablePicture as error:
        raise UserError(f"mask={printable(mask)} cannot be read: {printable(str(error))}") from error
    if not white.any():
        raise UserError(f"mask={printable(mask)} has no white part, so there is nothing to paint")
    return ~white


def _class_mean(label: int, model: "LoadedModel", data: "ImageDataModule") -> "Tensor":
    """Return the mean (C, h, w) of the posterior means of a class's training pictures."""
    from flowergen.evaluation.latent_edits import encode

    rows = [row for row in data.rows["train"].tolist() if data.pictures.labels[row] == label][:MAX_FOR_MEAN]
    if not rows:
        raise UserError(f"class {model.class_names[label]} has no training pictures")
    return encode(model.module, data.pictures[rows].image.float() / 255).mean.mean(0)


if __name__ == "__main__":
    one_line_errors(main)
