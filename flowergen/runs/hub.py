"""Repositories of the Hugging Face hub: shared runs, ``hub:OWNER/NAME``, and pretrained autoencoders of diffusers."""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, get_args

from flowergen.config.overrides import HUB
from flowergen.config.schema import PretrainedKind
from flowergen.errors import UserError, one_line
from flowergen.runs.run_folder import RunFolder

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # files of a pretrained autoencoder of diffusers
FOLDER = "outputs/hub"
FILES = ("config.yaml", "model.safetensors", "state.json", "latents.safetensors", "README.md", "samples.png")
NESTED = ("", "autoencoder/", "diffusion/", "diffusion/autoencoder/")
OWN_CACHE = "~/.cache/flowergen"  # in place of the paths of whoever shared the run
TRUSTED = ("flowergen.", "torch.optim.", "lightning.pytorch.")


def downloaded(value: str, key: str, files: Sequence[str]) -> Path:
    """Return the folder of files of a repository of the hub, downloaded into the hub's cache unless they were before.

    Args:
        value: ``hub:OWNER/NAME``, ``hub:OWNER/NAME/SUBFOLDER``, or either with ``@REVISION`` at its end.
        key: the option that it was typed for.
        files: their names; those that the repository lacks are left out.

    Raises:
        UserError: the name is incomplete, or the files cannot be downloaded.
    """
    name, subfolder, revision = _split(value, f"{key}={value}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME/SUBFOLDER")
    below = f"{subfolder}/" if subfolder else ""
    try:
        from huggingface_hub import snapshot_download  # slow to import

        return Path(snapshot_download(name, revision=revision, allow_patterns=[f"{below}{file}" for file in files])) / below
    except Exception as error:  # huggingface_hub, its HTTP client and the file system raise various exceptions
        raise UserError(
            f"{key}={value} cannot be downloaded ({type(error).__name__}): put {below}{CONFIG} and {below}{WEIGHTS} of "
            f"https://huggingface.co/{name} into a folder, and give it as {key}=FOLDER; it must be one of "
            f"{', '.join(get_args(PretrainedKind))}"
        ) from error


def pinned(value: str, folder: Path) -> str:
    """Return a name with the commit of its files in place of a revision.

    Args:
        value: as for ``downloaded``.
        folder: what it has returned, in the hub's cache: ``.../snapshots/COMMIT``, or a subfolder of it.
    """
    parts = folder.parts
    commit = parts[len(parts) - parts[::-1].index("snapshots")]
    return f"{value.partition('@')[0]}@{commit}"


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
    wrong = f"{value}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION"
    name, subfolder, revision = _split(value, wrong)
    if subfolder:
        raise UserError(wrong)
    if find_spec("huggingface_hub") is None:
        raise UserError(f"{value} needs huggingface_hub: pip install 'flowergen[hub]'")
    from huggingface_hub import snapshot_download

    folder = Path(FOLDER, f"{name}@{revision.replace('/', '_')}" if revision else name).absolute()
    wanted = [f"{nested}{file}" for nested in NESTED for file in FILES]
    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=wanted)
    except Exception as error:  # huggingface_hub, its HTTP client and the file system raise various exceptions
        raise UserError(
            f"{value} cannot be downloaded ({type(error).__name__}: {one_line(error)[:300]}): check the name, log in "
            f"with 'hf auth login' if it is private, or download it by other means and give the folder"
        ) from error
    _refuse_untrusted(value, folder)
    return folder


def _split(value: str, wrong: str) -> tuple[str, str, str | None]:
    """Return OWNER/NAME, the subfolder, which may be empty, and the revision; raise a UserError if one is incomplete."""
    path, at, revision = value.removeprefix(HUB).partition("@")
    owner, *rest = parts = path.split("/")
    if not rest or not all(parts) or (at and not revision):
        raise UserError(wrong)
    return f"{owner}/{rest[0]}", "/".join(rest[1:]), revision or None


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
        for before in ("autoencoder", "diffusion"):
            if config.get(before) not in (None, "none") and not (run / before).is_dir():
                raise UserError(f"{value} is not a run that flowergen.push has written: it has no {nested}{before}")


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a config with its dotted key."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        here = f"{key}.{name}" if key else str(name)
        if isinstance(child, str):
            yield here, child
        else:
            yield from _texts(child, here)
