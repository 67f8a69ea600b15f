"""Repositories of the Hugging Face hub: shared runs, ``hub:OWNER/NAME``, and pretrained autoencoders of diffusers."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from flowergen.errors import UserError, one_line
from flowergen.quoting import HUB
from flowergen.runs.run_folder import RunFolder

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # files of a pretrained autoencoder of diffusers
FOLDER = "outputs/hub"
FILES = ("config.yaml", "model.safetensors", "state.json", "latents.safetensors", "README.md", "samples.png")
NESTED = ("", "autoencoder/", "diffusion/", "diffusion/autoencoder/")
OWN_CACHE = "~/.cache/flowergen"  # replaces the paths of the user who shared the run
COMMIT = re.compile("[0-9a-f]{40}")
CLASS = re.compile(r"(flowergen(?:\.\w+)*|torch\.optim|lightning\.pytorch(?:\.\w+)?)\.[A-Z]\w*")


def pinned(value: str, key: str) -> str:
    """Return the name of a repository with its current commit in place of a branch or a tag.

    Args:
        value: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME/SUBFOLDER``, possibly with ``@REVISION`` at its end.
        key: the option that it was typed for.

    Raises:
        UserError: the name is incomplete, or the repository cannot be reached.
    """
    revision = _split(value)[2]
    if revision and COMMIT.fullmatch(revision):
        return value
    return f"{value.partition('@')[0]}@{_snapshot(value, key, (CONFIG, 'config.yaml')).name}"


def downloaded(value: str, key: str, files: tuple[str, ...]) -> Path:
    """Return the folder of files of a repository in the hub's cache, downloading them if necessary.

    Args:
        value, key: see ``pinned``.
        files: names of the files; those that the repository lacks are left out.

    Raises:
        UserError: the name is incomplete, or the files cannot be downloaded.
    """
    return _snapshot(value, key, files) / _split(value)[1]


@cache
def downloaded_run(value: str, key: str) -> Path:
    """Download a run that ``flowergen.push`` has written, unless it is there already.

    Only data are downloaded, no code and no pickled files. If the hub cannot be reached, the files of an earlier download are
    used.

    Args:
        value, key: see ``pinned``; without a subfolder.

    Returns:
        Its run folder, ``FOLDER/OWNER/NAME@COMMIT`` with the first twelve characters of the commit.

    Raises:
        UserError: the name is incomplete, the repository cannot be downloaded, or it contains no shared run.
    """
    name, subfolder, revision = _split(value)
    if subfolder:
        raise UserError(f"{key}={value}: a run is named {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    if revision and COMMIT.fullmatch(revision) and (folder := _folder(name, revision)).is_dir():
        return folder
    wanted = tuple(f"{nested}{file}" for nested in NESTED for file in FILES)
    snapshot = _snapshot(value, key, wanted)
    _refuse_untrusted(f"{key}={value}", snapshot)
    folder = _folder(name, snapshot.name)
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for file in wanted:  # other programs may have downloaded other files
            if (snapshot / file).is_file():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / file, partial / file)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # if it exists, another process copied it first
            raise UserError(f"{key}={value} cannot be copied to {folder} ({error.strerror}): make room") from error
    return folder


def _folder(name: str, commit: str) -> Path:
    return Path(FOLDER, f"{name}@{commit[:12]}").absolute()


@cache
def _snapshot(value: str, key: str, files: tuple[str, ...]) -> Path:
    """Return the folder of a commit in the hub's cache, named after it, with those of the files that the repository has."""
    name, subfolder, revision = _split(value)
    if find_spec("huggingface_hub") is None:
        raise UserError(f"{key}={value} needs huggingface_hub: pip install 'flowergen[hub]'")
    for client in ("httpx", "httpx2"):  # HTTP clients of its versions, which log each request
        logging.getLogger(client).setLevel(logging.WARNING)
    from huggingface_hub import snapshot_download  # slow to import

    wanted = [f"{subfolder}/{file}".lstrip("/") for file in files]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # huggingface_hub, its HTTP client and the file system raise various exceptions
        raise UserError(
            f"{key}={value} cannot be downloaded ({type(error).__name__}: {one_line(error)[:300]}): check name and network, "
            f"log in with 'hf auth login' if it is private, or get {wanted[0]} and the files beside it in another way and give "
            "their folder"
        ) from error


def _split(value: str) -> tuple[str, str, str | None]:
    """Return OWNER/NAME, the subfolder, which may be empty, and the revision; raise a UserError if one is incomplete."""
    path, at, revision = value.removeprefix(HUB).partition("@")
    owner, *rest = parts = path.split("/")
    if not rest or not all(parts) or {".", ".."} & {*parts, *revision.split("/")} or (at and not revision):
        raise UserError(
            f"{value}: give {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION, or for diffusers {HUB}OWNER/NAME/SUBFOLDER"
        )
    return f"{owner}/{rest[0]}", "/".join(rest[1:]), revision or None


def _refuse_untrusted(value: str, folder: Path) -> None:
    """Check a downloaded run before anything in it is used.

    Raises:
        UserError: it is not a shared run, names classes that are not flowergen's, or contains paths.
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
            if key.endswith("_target_") and not _is_trusted(text):
                raise UserError(
                    f"{value}: {nested}config.yaml has {key}={text}, a class that is not flowergen's: if you trust it, install "
                    "it, and download the run in another way"
                )
        for stage in ("autoencoder", "diffusion"):
            if config.get(stage) not in (None, "none") and not (run / stage).is_dir():
                raise UserError(f"{value} is not a run that flowergen.push has written: it has no {nested}{stage}")


def _is_trusted(target: str) -> bool:
    """Return True for classes of modules of flowergen, and for optimisers and trainers."""
    found = CLASS.fullmatch(target)
    if found is None or not found[1].startswith("flowergen"):
        return found is not None
    return Path(__file__).parents[2].joinpath(*found[1].split(".")).with_suffix(".py").is_file()


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a config with its dotted key."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        here = f"{key}.{name}" if key else str(name)
        if isinstance(child, str):
            yield here, child
        else:
            yield from _texts(child, here)
