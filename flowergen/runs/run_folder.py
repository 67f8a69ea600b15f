"""The files of a run, and how to find a run named on a command line."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout

from flowergen.errors import UserError
from flowergen.files import replacing
from flowergen.quoting import HUB

MAX_YAML_BYTES = 1_000_000  # bytes; the files of a run have a few thousand
REFUSED_PREFIX = f"{UserError.__name__}:"  # prefix of ``exit`` of a session that ended before an optimiser step


class RunFolder:
    """The files of a run. Self-contained: sampling needs nothing else."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.overrides = self.path / "overrides.yaml"
        self.provenance = self.path / "provenance.json"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.latents = self.path / "latents.safetensors"
        self.autoencoder = self.path / "autoencoder"  # in a diffusion run: a nested run folder
        self.diffusion = self.path / "diffusion"  # in a decoder's run: a nested run folder
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.csv"
        self.images = self.path / "images"
        self.page = self.path / "index.html"
        self.tracker_id = self.path / "tracker_id"
        self.shared_weights = self.path / "model.safetensors"  # in a shared run, in place of checkpoints
        self.shared_state = self.path / "state.json"

    @property
    def sampling_folder(self) -> "RunFolder":
        """The folder whose config describes sampling: for a decoder's run, that of the nested diffusion run."""
        return RunFolder(self.diffusion) if self.read_config().get("diffusion") not in (None, "none") else self

    def store(self, config: dict[str, Any], overrides: Sequence[str]) -> None:
        """Write the config and overrides that the run was started with."""
        for path, content in ((self.overrides, list(overrides)), (self.config, config)):  # config.yaml last, as it marks a run
            write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training in this folder."""
        return locked(self.path, "training")

    def is_complete(self) -> bool:
        """Return True if the files written at the end of training exist."""
        return self.weights.is_file() and self.latents.is_file()

    def id_for_trackers(self) -> str:
        """Return the id that identifies this run to trackers such as W&B in all its sessions; the first call creates it."""
        if not self.tracker_id.is_file():
            write_atomically(self.tracker_id, uuid4().hex)
        return self.tracker_id.read_text()

    def exit(self) -> str | None:
        """Return how the last session ended, such as "finished"; None if unknown."""
        try:
            return json.loads(self.provenance.read_text()).get("exit")
        except (OSError, ValueError, AttributeError):
            return None

    def never_started(self) -> bool:
        """Return True if all sessions were refused before an optimiser step, so a new run may use the folder."""
        return str(self.exit()).startswith(REFUSED_PREFIX) and not any(self.checkpoints.glob("*.ckpt"))

    def clear_refused(self) -> None:
        """Remove the copy of the previous stage that refused sessions have left, if there were no other sessions."""
        if not self.never_started():
            return
        for nested in (RunFolder(self.autoencoder), RunFolder(self.diffusion)):
            if nested.config.is_file() and not nested.provenance.exists():  # a copy, not a run of its own
                shutil.rmtree(nested.path)

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml; raise a ``UserError`` if it is not the config of a run."""
        config = _read_yaml(self.config, dict)
        groups = [config.get(key) for key in ("paths", "model", "data", "trainer")]
        if not all(isinstance(group, dict) for group in groups) or any(
            not isinstance(p, str) for p in config["paths"].values()
        ):
            raise UserError(f"{self.config} was not written by flowergen")
        if "${" in str(config):
            raise UserError(f"{self.config} contains an interpolation, ${{...}}, but a run stores plain values: insert them")
        for group in ("paths", "model", "data"):  # a shared run uses the caches of the user who loads it
            for key in ("cache_dir", "weights_dir"):
                if isinstance(config[group].get(key), str):
                    config[group][key] = os.path.expanduser(config[group][key])
        return config

    def read_overrides(self) -> list[str]:
        """Read overrides.yaml; raise a ``UserError`` if it does not contain the overrides of a run."""
        lines = _read_yaml(self.overrides, list)
        for line in lines:  # a run folder must not set Hydra's own node, as Hydra instantiates what it names
            permitted = isinstance(line, str) and (
                "hydra" not in line.partition("=")[0] or line.startswith("hydra.searchpath=")
            )
            if not permitted:
                raise UserError(f"{self.overrides} was not written by flowergen: a run does not store {line!r}")
        return lines


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from doing the same in a folder; the lock of a killed process is released.

    Raises:
        UserError: another process holds the lock, or the folder is read-only.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is {doing} in this folder; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): copy it to a writable folder") from error
    try:
        yield
    finally:
        lock.release()


def find_run(value: str | Path, key: str = "run") -> tuple[RunFolder, Path | None]:
    """Resolve ``key=value`` of a command line: a run folder, a ``.ckpt`` in its ``checkpoints``, or a shared run of the hub.

    Returns:
        The run, and the checkpoint if one was named.

    Raises:
        UserError: there is no such run.
    """
    if str(value).startswith(HUB):
        from flowergen.runs.hub import downloaded_run  # imported here because it imports this module

        return RunFolder(downloaded_run(str(value), key)), None
    path = Path(os.path.expanduser(value)).absolute()
    if not os.path.exists(path):  # unlike Path.exists, False for a name that the file system rejects
        raise UserError(f"{key}={value}: no such run; give a run folder, such as outputs/NAME/DATE_TIME, or a .ckpt in it")
    checkpoint = path if path.is_file() else None
    folder = path.parent.parent if checkpoint else path
    if checkpoint and checkpoint.suffix != ".ckpt":
        raise UserError(f"{key}={value} is neither a run folder nor a .ckpt in one")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{key}={value}: {folder} is not a run folder: it has no config.yaml")
    return RunFolder(folder), checkpoint


def create_unused_folder(folder: str | Path, key: str = "paths.output_dir") -> Path:
    """Create a new folder, which no other process has claimed; if the name is taken, use the next free one.

    Raises:
        UserError: the folder cannot be created: choose another with the option ``key``.
    """
    wanted = Path(folder).expanduser().absolute()
    make_folder(wanted.parent)
    for number in range(1, 1000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except (OSError, ValueError) as error:  # ValueError for invalid characters
            raise UserError(f"{path} cannot be created ({_reason(error)}): choose another {key}=") from error
        return path
    raise UserError(f"{wanted} and 999 numbered ones exist already: choose another {key}=")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; raise a ``UserError`` if it cannot be created, or is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be created ({_reason(error)}): choose another folder") from error


def _reason(error: OSError | ValueError) -> object:
    return error.strerror if isinstance(error, OSError) else error


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file atomically: a reader sees the old or the new content."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases, which we never write: a few lines of them can expand to billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it contains an alias")
        return super().compose_node(parent, index)


def _read_yaml(path: Path, kind: type) -> Any:
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path} was not written by flowergen: it is larger than {MAX_YAML_BYTES:,} bytes")
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # a SafeLoader
    except UserError:
        raise
    except Exception as error:  # odd numbers and dates raise ValueError, deep nesting RecursionError
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} was not written by flowergen")
    return content


def is_first_process() -> bool:
    """Return True in the process of a distributed run that writes files; works before the run is set up."""
    if "RANK" in os.environ:  # set by torchrun
        return int(os.environ["RANK"]) == 0
    # set by srun and by Lightning: in a shell opened by srun, SLURM_PROCID is 0 in every process that Lightning starts
    return all(int(os.environ.get(variable, "0")) == 0 for variable in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
