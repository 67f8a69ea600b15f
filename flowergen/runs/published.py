"""Export of runs for sharing: weights as safetensors, no paths of this machine, and a model card.

The result is a run folder or a pipeline of diffusers.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from flowergen.config.check import data_options
from flowergen.errors import UserError
from flowergen.evaluation.card import markdown, newest_card
from flowergen.quoting import HUB
from flowergen.runs.diffusers_folder import write_pipeline
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.loading import checkpoint_to_load, read_checkpoint
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.stages import path_of_previous_stage, previous_stage

UNPUBLISHED_KEYS = ("optimizer_states", "lr_schedulers", "state_dict", "callbacks", "hparams_name", "hyper_parameters")
MAX_STATE_VALUES = 4096  # most values of a tensor in state.json
APP = """\"\"\"The page of the run in this folder, as python -m flowergen.explore serves it.\"\"\"

from pathlib import Path

from flowergen.explorer.server import serve

serve(str(Path(__file__).parent), "0.0.0.0", 7860)  # host and port of a Space
"""


def publish(
    run: RunFolder,
    checkpoint: Path | None,
    model: LoadedModel,
    folder: Path,
    form: str,
    repo: str | None,
    space: str | None = None,
) -> None:
    """Write a run for sharing into an empty folder.

    Args:
        run, model: the run, and what is loaded from it.
        checkpoint: a checkpoint of the run; None for the one that is loaded by default.
        folder: the folder.
        form: ``flowergen`` or ``diffusers``.
        repo: OWNER/NAME of the repository that it is uploaded to, for the model card; None for none.
        space: the requirement that a Space installs to run app.py, the page of ``flowergen.explore``, such as
            ``flowergen[app]==VERSION``; None for no Space.
    """
    if form == "diffusers":
        write_pipeline(model, folder)
    else:
        _write_files(run, checkpoint, folder)
    grids = sorted(run.path.glob("samples/*/grid.png"), key=os.path.getmtime)
    pictures = [*sorted(run.images.glob("generated_*.png")), *grids]  # the best last
    if pictures:
        shutil.copyfile(pictures[-1], folder / "samples.png")
    (folder / "README.md").write_text(_model_card(run, model, form, bool(pictures), repo, bool(space)), encoding="utf-8")
    if space:
        (folder / "app.py").write_text(APP, encoding="utf-8")
        (folder / "requirements.txt").write_text(f"{space}\n", encoding="utf-8")


def _write_files(run: RunFolder, checkpoint: Path | None, folder: Path) -> None:
    """Write the files needed to load a run, including those of the runs nested in it."""
    content, stored = read_checkpoint(checkpoint_to_load(run, checkpoint)), run.read_config()
    shared = RunFolder(folder)
    weights = {name: tensor.contiguous() for name, tensor in content["state_dict"].items()}
    save_file(weights, shared.shared_weights, metadata={"format": "pt"})
    if isinstance(content["flowergen"].get("guard"), dict):
        content["flowergen"]["guard"]["good"] = None  # a copy of the weights and optimisers
    state = {key: _plain(value) for key, value in content.items() if key not in UNPUBLISHED_KEYS}
    shared.shared_state.write_text(json.dumps(state), encoding="utf-8")
    shared.config.write_text(yaml.safe_dump(_without_paths(stored), sort_keys=False, allow_unicode=True), encoding="utf-8")
    if run.latents.is_file():
        shutil.copyfile(run.latents, shared.latents)
    previous = previous_stage(stored)
    if previous:
        (folder / previous[0]).mkdir()
        _write_files(RunFolder(path_of_previous_stage(previous, run)), None, folder / previous[0])


def _plain(value: Any) -> Any:
    """Convert a value of a checkpoint to JSON types; ``runs.loading`` restores it."""
    if isinstance(value, Tensor):
        if value.numel() > MAX_STATE_VALUES:
            raise UserError(f"the checkpoint has a tensor of {value.numel():,} values besides its weights, which is not shared")
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Replace paths: caches by their defaults, others by their last part."""
    defaults = {
        config["paths"].get("cache_dir"): "~/.cache/flowergen",
        config["paths"].get("weights_dir"): "~/.cache/flowergen/weights",
    }

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        return defaults.get(value, Path(value).name) if isinstance(value, str) and os.path.isabs(value) else value

    return replaced(config) | {"resume": None, "init": None}


def _model_card(run: RunFolder, model: LoadedModel, form: str, has_samples: bool, repo: str | None, space: bool) -> str:
    """Return README.md in the hub's format. The licence is left to the user."""
    data = model.config["data"]
    name = run.path.name
    tags = ["flowergen", "image-generation", "pytorch", *(["diffusion"] if model.module.denoises else ["vae"])]
    about: dict[str, Any] = {"library_name": form, "pipeline_tag": "unconditional-image-generation", "tags": tags}
    if space:
        about |= {"title": name, "sdk": "gradio", "app_file": "app.py"}
    head = yaml.safe_dump(about)
    classes = f"{len(model.class_names)} classes: {', '.join(model.class_names)}" if model.class_names else "no classes"
    of_class = f', classes=["{model.class_names[0]}"]' if model.class_names else ""
    shape = ", ".join(map(str, (4, *model.module.picture_shape)))
    load = {
        "flowergen": [
            "import flowergen", "",
            f'model = flowergen.load("{HUB}{repo}")' if repo else 'model = flowergen.load("FOLDER")  # where these files are',
            f"x = model.sample(4{of_class})  # ({shape}) in [0, 1]",
        ],
        "diffusers": [
            "from diffusers import DiffusionPipeline", "",
            f'folder = "{repo or "FOLDER"}"{"" if repo else "  # where these files are"}',
            "pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)  # executes the two .py files in it",
            f"pictures = pipeline(num_images=4{of_class}).images",
        ],
    }[form]  # fmt: skip
    lines = [
        "---", head.rstrip(), "license: # to be filled in", "---", "",
        f"# {name}", "", f"{model.module.summary()}, trained with flowergen.", "",
        *(["![Samples](samples.png)", ""] if has_samples else []),
        "## How to load it", "", "```python", *load, "```", "",
        "## Training data", "",
        f"`{data_options(data)}`, {model.module.picture_shape}, split {data.get('split')}; {classes}.", "",
        "## Metrics", "",
    ]  # fmt: skip
    try:
        card = markdown(newest_card(run.path))
        for heading in ("Not measured", "Notes", "Protocol"):  # the first two may name paths of this machine
            card = card.partition(f"\n## {heading}")[0]
        lines += ["\n".join(line.replace("## ", "### ", 1) for line in card.splitlines()[1:])]
    except UserError:
        lines += ["Not measured."]
    return "\n".join(lines).rstrip() + "\n"
