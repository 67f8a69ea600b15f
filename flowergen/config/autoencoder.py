"""What a diffusion run takes from its autoencoder's run. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowergen.config.run_folder import RunFolder, find_run
from flowergen.errors import UserError

OF_THE_PICTURES = ("data.image_size",)
OF_THE_SPLIT = ("data.split", "data.split_seed")  # another one would train on pictures that the other holds out


def taken_over(autoencoder: str, run: RunFolder | None, data: dict[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """Overrides that a command line is completed with.

    Args:
        autoencoder: as typed: a run, or a checkpoint in one.
        run: the diffusion run that is resumed; its own copy of the autoencoder counts, and the original may be gone.
        data: the composed and resolved ``data`` node.
        typed: the keys that were given on the command line, with their values.

    Returns:
        ``++KEY=VALUE``, for those of the autoencoder's keys that were not typed. A run folder does not keep them: when it is
        resumed they are taken over again.

    Raises:
        UserError: there is no such run, it is no autoencoder's, or another value was typed.
    """
    carried = run.autoencoder if run else Path()
    folder = RunFolder(carried) if run and carried.is_dir() else find_run(autoencoder, "autoencoder")[0]
    stored = folder.read_config()
    if stored.get("autoencoder"):
        raise UserError(f"autoencoder={autoencoder} is a diffusion run itself: give the run of a VAE or a VAE-GAN")
    theirs = stored["data"]
    same_kind = theirs.get("_target_") == data.get("_target_")  # it may have moved since
    elsewhere = theirs.get("root") != data.get("root")
    lines = []
    for key in OF_THE_PICTURES + (OF_THE_SPLIT if same_kind else ()):
        name = key.removeprefix("data.")
        if name not in theirs or name not in data:
            continue
        if key not in typed:
            lines.append(f"++{key}={theirs[name]}")
        elif typed[key] != theirs[name] and not (elsewhere and key in OF_THE_SPLIT):
            raise UserError(f"{key}={typed[key]}: the autoencoder was trained with {key}={theirs[name]}, so leave {key} out")
    return lines


def is_taken_over(line: str) -> bool:
    """Whether an override is one of ``taken_over``'s."""
    return line.startswith(tuple(f"++{key}=" for key in OF_THE_PICTURES + OF_THE_SPLIT))
