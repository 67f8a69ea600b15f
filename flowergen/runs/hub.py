"""Runs in repositories of the Hugging Face hub, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``."""

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from flowergen.config.overrides import HUB
from flowergen.errors import UserError, one_line
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.stages import stage_before

FOLDER = "outputs/hub"
FILES = ("config.yaml", "model.safetensors", "state.json", "latents.safetensors", "README.md", "samples.png")
NESTED = ("", "autoencoder/", "diffusion/", "diffusion/autoencoder/")
OWN_CACHE = "~/.cache/flowergen"  # in place of the paths of whoever shared the run
TRUSTED = ("flowergen.", "torch.optim.", "lightning.pytorch.")


@cache
def downloaded_run(value: str) -> Path:
    """Download a run that ``flowergen.push`` has written, unless it is there already.

    Only data are downloaded, no code and no pickled files. If the hub cannot be reached, the files of an earlier download are
    used.

    Args:
        value: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.

    Returns:
        Its run folder, ``FOLDER/OWNER/NAME`` or ``FOLDER/OWNER/NAME@REVISION``.

    Raises:
        UserError: the name is incomplete, the repository cannot be downloaded, or it contains no shared run.
    """
    name, _, revision = value.removeprefix(HUB).partition("@")
    if len(parts := name.split("/")) != 2 or not all(parts) or value.endswith("@"):
        raise UserError(f"{value}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    if find_spec("huggingface_hub") is None:
        raise UserError(f"{value} needs huggingface_hub: pip install 'flowergen[hub]'")
    from huggingface_hub import snapshot_download

    folder = Path(FOLDER, name + f"@{revision.replace('/', '_')}" * bool(revision)).absolute()
    wanted = [f"{nested}{file}" for nested in NESTED for file in FILES]
    try:
        snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=wanted)
    except Exception as error:  # huggingface_hub, its HTTP client and the file system raise various exceptions
        raise UserError(
            f"{value} cannot be downloaded ({type(error).__name__}: {one_line(error)[:300]}): check the name, log in "
            f"with 'hf auth login' if it is private, or download it by other means and give the folder"
        ) from error
    _refuse_untrusted(value, folder)
    return folder


def _refuse_untrusted(value: str, folder: Path) -> None:
    """Check a downloaded run before anything in it is used.

    Raises:
        UserError: it is no shared run, names classes that are not flowergen's, or contains paths.
    """
    for nested in NESTED:
        run = folder / nested
        if nested and not run.is_dir():
            continue
        missing = [name for name in FILES[:3] if not (run / name).is_file()]
        if missing:
            raise UserError(f"{value} is not a run that flowergen.push has written: it has no {nested}{missing[0]}")
        config = RunFolder(run).read_config()
        for key, text in _texts(config):
            path = PurePath(os.path.expanduser(text))
            cached = key.endswith("_dir") and path.is_relative_to(os.path.expanduser(OWN_CACHE))
            if ".." in path.parts or (path.is_absolute() and not cached):
                raise UserError(f"{value}: {nested}config.yaml has the path {key}={text}, which no shared run has")
            if key.endswith("_target_") and not text.startswith(TRUSTED):
                raise UserError(
                    f"{value}: {nested}config.yaml has {key}={text}, a class that is not flowergen's: if you trust it, install "
                    f"it and give the folder, {folder}"
                )
        before = stage_before(config)
        if before and not (run / before[0]).is_dir():
            raise UserError(f"{value} is not a run that flowergen.push has written: it has no {nested}{before[0]}")


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a config with its dotted key."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        here = f"{key}.{name}" if key else str(name)
        if isinstance(child, str):
            yield here, child
        else:
            yield from _texts(child, here)
