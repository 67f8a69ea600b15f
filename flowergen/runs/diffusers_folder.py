"""Latent diffusion runs as pipelines of diffusers, which are loaded without flowergen."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from flowergen.modules.pretrained import PretrainedAutoencoder
from flowergen.runs.loaded_model import LoadedModel

TRAINING_KEYS = ("objective", "schedule", "num_timesteps", "zero_terminal_snr", "class_dropout")  # needed for sampling


def write_pipeline(model: LoadedModel, folder: Path) -> None:
    """Write latent diffusion on an autoencoder of diffusers, with a network of flowergen, as a pipeline of diffusers."""
    import diffusers  # slow to import

    from flowergen.runs.diffusers_denoiser import Denoiser

    module, config = model.module.denoising_model, model.config["model"]
    assert module is not None
    autoencoder = module.autoencoder
    assert isinstance(autoencoder, PretrainedAutoencoder)
    arguments = {key: value for key, value in config["network"].items() if not key.startswith("_")}
    denoiser = Denoiser(type(module.net).__name__, arguments, module.latent_shape, model.class_names)
    denoiser.net.load_state_dict(module.inference_net.state_dict())
    denoiser.latent_mean.copy_(module.latent_mean)
    denoiser.latent_std.copy_(module.latent_std)
    denoiser.save_pretrained(folder / "denoiser")
    autoencoder.net.save_pretrained(folder / "vae")  # type: ignore[operator]
    index = {
        "_class_name": ["pipeline", "LatentDiffusionPipeline"],
        "_diffusers_version": diffusers.__version__,
        "vae": ["diffusers", autoencoder.kind],
        "denoiser": ["denoiser", Denoiser.__name__],
        "training": {key: config[key] for key in TRAINING_KEYS},
        "sampling": config["sampling"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, file in (("diffusers_pipeline", "pipeline.py"), ("diffusers_denoiser", "denoiser/denoiser.py")):
        (folder / file).write_text(standalone(f"flowergen.runs.{name}"), encoding="utf-8")


class _Statement(NamedTuple):
    """A statement at the top level of a module."""

    module: str | None  # None for an import from another package
    defines: set[str]
    uses: set[str]
    text: str


def standalone(module: str) -> str:
    """Return the source of a module, with the definitions of flowergen that it needs in place of the imports of flowergen.

    One file, because diffusers copies what a local pipeline imports into a folder that all local pipelines share.
    """
    statements = _statements(module, set())
    needed: set[str] = set()
    while True:
        kept = [statement for statement in statements if statement.module == module or statement.defines & needed]
        used = set[str]().union(*(statement.uses for statement in kept))
        if used <= needed:
            break
        needed |= used
    imports = sorted({statement.text for statement in kept if statement.module is None})
    docstring, *definitions = [statement.text for statement in kept if statement.module is not None]
    return f"{docstring}\n\n" + "\n".join(imports) + "".join(f"\n\n\n{text}" for text in definitions) + "\n"


def _statements(module: str, visited: set[str]) -> list[_Statement]:
    """Return the statements of a module, after those of flowergen's modules that it imports from; ``visited`` is left out."""
    visited.add(module)
    spec = find_spec(module)
    assert spec is not None
    source = Path(str(spec.origin)).read_text(encoding="utf-8")
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flowergen."):
            found += _statements(str(node.module), visited) if node.module not in visited else []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found.append(_Statement(None, {alias.asname or alias.name}, set(), f"{origin}import {ast.unparse(alias)}"))
        else:
            uses = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            first = min([node, *getattr(node, "decorator_list", [])], key=lambda part: part.lineno).lineno
            found.append(_Statement(module, _defined(node), uses, "\n".join(lines[first - 1 : node.end_lineno])))
    return found


def _defined(node: ast.stmt) -> set[str]:
    """Return the names that a function, a class or an assignment defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
