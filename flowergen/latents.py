"""``python -m flowergen.latents``: analyse the latent space of a run, including posterior collapse."""

import json
import math
import sys
from typing import TYPE_CHECKING

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Latents
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.machine_limits import out_of_memory_as_user_error
from flowergen.runs.run_folder import find_run, write_atomically
from flowergen.runs.stages import model_nodes

if TYPE_CHECKING:
    import numpy as np

    from flowergen.data.image_datamodule import ImageDataModule
    from flowergen.nn.posterior import Posterior
    from flowergen.runs.loaded_model import LoadedModel

MAX_VALUES = 2**26  # in the posterior means of a split: 256 MiB
MAX_COMPARED = 1024  # pictures in the pairwise comparison


@out_of_memory_as_user_error("; use fewer pictures with num=")
def main() -> None:
    """Check the options, encode, measure, write the report, and print its main figures."""
    config = read_command_line("latents", Latents, sys.argv[1:])
    run, _ = find_run(config["run"])
    nodes = model_nodes(run.sampling_folder)
    diffused = "sampling" in nodes["model"]
    if diffused and "autoencoder" not in nodes:
        raise UserError(
            f"run={printable(config['run'])}: this diffusion works on pixels and has no latent space; give the run of a VAE, "
            "of a VAE-GAN, or of diffusion on the latents of one"
        )

    import numpy as np
    import torch

    import flowergen
    from flowergen.data.image_datamodule import evenly_spaced
    from flowergen.evaluation import latent_report
    from flowergen.evaluation.collapse import measure_collapse, verdict
    from flowergen.randomness import normal_per_sample
    from flowergen.runs.loading import build_datamodule_of_run

    model = flowergen.load(config["run"], "cuda" if torch.cuda.is_available() else "cpu")
    data = build_datamodule_of_run(model, config["data"]["root"], config["paths"]["cache_dir"])
    split = config["split"] or next(name for name in ("test", "val", "train") if len(data.rows[name]))
    if not len(data.rows[split]):
        raise UserError(f"split={split}: the run's data has no such pictures (data.split={data.split})")
    num = min(config["num"], max(2, MAX_VALUES // math.prod(model.module.latent_shape)))
    if num < config["num"]:
        print(f"num={num}: the maximum for latents of {math.prod(model.module.latent_shape):,} values", file=sys.stderr)
    rows, train_rows = evenly_spaced(data.rows[split], num), evenly_spaced(data.rows["train"], num)
    subset = f"{'training' if split == 'train' else split} pictures"

    posterior = _encode(model, data, rows, subset)
    train = None if split == "train" else _encode(model, data, train_rows, "training pictures").mean
    labels, train_labels = (torch.from_numpy(data.pictures.labels[r]) for r in (rows, train_rows))
    compared = evenly_spaced(np.arange(len(rows)), MAX_COMPARED)
    noise = normal_per_sample(rows[compared].tolist(), model.module.latent_shape, seed=config["seed"], purpose="information")
    collapse = measure_collapse(posterior, torch.from_numpy(compared), noise)
    sentences = verdict(collapse, nodes["autoencoder" if diffused else "model"], diffused)
    if split == "train":
        held_out = "the run holds none out" if data.split == "all" else "split=test has others"
        sentences.append(f"These are training pictures ({held_out}): on new ones the figures may differ.")
    about = {"run": run.path.name, "data": data.name, "split": split, "pictures": subset, "num_pictures": len(rows)}
    classes = latent_report.figures_of_classes(posterior.mean, labels, train, train_labels)
    report = latent_report.as_data(about, collapse, classes, sentences)
    with output_folder(config["out"], run.path / "latents" / split) as folder:
        latent_report.write_maps(folder, collapse, posterior.mean, labels, data.class_names, subset, config["seed"])
        write_atomically(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_atomically(folder / "report.md", latent_report.markdown(report))
    for line in sentences:
        print(line)
    for name, value in latent_report.main_figures(report).items():
        print(f"{name}: {value}")
    print(f"report: {printable(str(folder))}")


def _encode(model: "LoadedModel", data: "ImageDataModule", rows: "np.ndarray", subset: str) -> "Posterior":
    """Return q(z|x) of these pictures, mean and logvar (N, C, h, w)."""
    import torch

    from flowergen.evaluation.encoding import posteriors
    from flowergen.nn.posterior import Posterior

    print(f"encoding {len(rows):,} {subset}", file=sys.stderr)
    parts = zip(*posteriors(model.module, data, rows, flips=False, bar=True), strict=True)
    posterior = Posterior(*(torch.cat(moments)[:, 0] for moments in parts))
    mean, logvar = (moment.flatten(1) for moment in posterior)
    broken = int((~(mean.square() + logvar).isfinite().all(1)).sum())
    if broken:
        raise UserError(
            f"the latents of {broken:,} of {len(rows):,} {subset} are not finite, the run has diverged: "
            "give an earlier checkpoint, run=RUN/checkpoints/NAME.ckpt"
        )
    return posterior


if __name__ == "__main__":
    one_line_errors(main)
