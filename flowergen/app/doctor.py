"""Check what training needs: packages, hardware, folders, weights and data sets, one line each.

Nothing is downloaded, decoded or written; a failed check is also reported in one line.
"""

import hashlib
import os
import platform
import shutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from packaging.requirements import Requirement

from flowergen.config import conf_dir
from flowergen.config.check import check, schema_of
from flowergen.config.schema_data import CelebA, Flowers102, ImageFolder
from flowergen.data.listing import Listing
from flowergen.errors import UserError, one_line, printable
from flowergen.runs.machine_limits import available_memory, total_memory

OLDEST_PYTHON = (3, 11)
LOW_SPACE = 10**9  # bytes; checkpoints of a larger recipe or thousands of decoded pictures take more
EXTRAS = {  # purpose of the optional packages
    "celeba": "the download of data=celeba",
    "export": "python -m flowergen.export format=onnx",
    "hub": "autoencoder=hub:OWNER/NAME and data=huggingface",
    "mlflow": "logger=mlflow",
    "sweep": "hparams_search=beta_optuna",
    "trackio": "logger=trackio",
    "wandb": "logger=wandb",
}
DATA_WITHOUT_FOLDER = {  # by data.root
    "": "needs no files",
    None: "any pictures of the Hugging Face hub, given by data.name=OWNER/NAME, or a folder of its formats",
    "???": "any folder of pictures, given by data.root=DIR",
}
DOWNLOADED: dict[type | None, str] = {  # data sets that training downloads automatically
    Flowers102: "training downloads it (330 MB), or: ",
    CelebA: "training downloads it (1.4 GB, often over its quota, needs gdown), or: ",
}


@dataclass(frozen=True)
class Line:
    """The result of a check: ``text`` is what was found, or what to do; ``fatal`` if training cannot start without it."""

    status: Literal["ok", "missing", "warning"]
    what: str
    text: str
    fatal: bool = False

    def __str__(self) -> str:
        return printable(f"{self.status:<8} {self.what:<17} {' '.join(self.text.split())}")


def all_checks(paths: dict[str, str]) -> Iterator[Line]:
    """Run all checks with the ``paths`` of a config, absolute; yield each line as soon as it is known."""
    machine = {"python": python, "packages": packages, "torch": imports, "gpu": gpus, "cpu": cpu, "memory": memory}
    for what, run_check in machine.items():
        yield from _guarded(what, run_check)
    for key in ("output_dir", "cache_dir", "weights_dir", "data_dir"):
        yield from _guarded(key, folder, key, Path(paths[key]))
    yield from _guarded("caches", caches, Path(paths["cache_dir"]))
    yield from _guarded("weights", weights, Path(paths["weights_dir"]))
    for file in sorted((Path(conf_dir()) / "data").glob("*.yaml")):
        yield from _guarded(f"data={file.stem}", data_set, file, paths)
    yield from _guarded("ddp", distributed)
    yield from _guarded("compiler", compiler)


def _guarded(what: str, run_check: Callable[..., Iterator[Line]], *arguments: Any) -> Iterator[Line]:
    try:
        yield from run_check(*arguments)
    except Exception as error:  # a broken installation, driver or disk may raise anything; other checks continue
        yield Line("warning", what, f"check failed ({type(error).__name__}: {str(error)[:500]})")


# ---- Environment -----------------------------------------------------------------------------------------------------
def python() -> Iterator[Line]:
    """Check the Python version."""
    right = sys.version_info >= OLDEST_PYTHON
    need = "" if right else "; flowergen needs {}.{} or newer: make PYTHON=/path/to/python setup".format(*OLDEST_PYTHON)
    yield Line("ok" if right else "missing", "python", f"{platform.python_version()}{need}", fatal=not right)


def packages() -> Iterator[Line]:
    """Check required packages, and those that options need, against pyproject.toml's ranges."""
    for requirement, extra in requirements():
        if extra in ("dev", "docs"):
            continue
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        use = f"for {EXTRAS.get(extra, f'flowergen[{extra}]')}: " if extra else ""
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Line("missing", requirement.name, f"{use}{remedy}", fatal=not extra)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Line("ok", requirement.name, version)
        else:
            yield Line("warning", requirement.name, f"{version} is not {requirement.specifier}: {remedy}")


def requirements() -> list[tuple[Requirement, str]]:
    """Return each requirement of the checkout, or else of the wheel, with its extra, or "" if always required."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return [(Requirement(line), extra) for extra, lines in groups.items() for line in lines]
    found = metadata.distribution("flowergen")
    extras = found.metadata.get_all("Provides-Extra") or []
    parsed = [Requirement(line) for line in found.requires or []]
    by_extra = {"": [r for r in parsed if r.marker is None]}
    by_extra |= {extra: [r for r in parsed if r.marker and r.marker.evaluate({"extra": extra})] for extra in extras}
    return [(r, extra) for extra, rs in by_extra.items() for r in rs]


def imports() -> Iterator[Line]:
    """Check that the heavy packages load: versions alone do not reveal a CUDA torchvision next to a CPU torch."""
    for name in ("torch", "torchvision", "lightning.pytorch"):
        try:
            __import__(name)
        except Exception as error:  # a mismatch raises ImportError, OSError, RuntimeError or AttributeError
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            yield Line("missing", "import", f"{name} does not load ({reason}): reinstall it", fatal=True)
            return
    yield Line("ok", "import", "torch, torchvision and lightning load")


# ---- Hardware --------------------------------------------------------------------------------------------------------
def gpus() -> Iterator[Line]:
    """Report the GPUs that torch sees, and what precision=auto means on them."""
    import torch

    from flowergen.runs.trainer import resolve_precision

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    reasons = "; ".join(one_line(warning.message) for warning in caught if isinstance(warning.message, Exception))
    if not available:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is None and shutil.which("nvidia-smi"):
            unreached = f"cannot use the GPU ({reasons or 'is its driver loaded?'})"
            wrong = unreached if torch.version.cuda else "was built for the CPU"
            yield Line("warning", "gpu", f"nvidia-smi exists, but torch {torch.__version__} {wrong}: see https://pytorch.org")
        else:
            why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
            where = "trainer=auto uses the CPU, for which experiment=quickstart and vae_gan_tiny are made"
            yield Line("missing", "gpu", f"torch {torch.__version__} sees none{why}: {where}")
    for index in range(torch.cuda.device_count() if available else 0):
        free, total = torch.cuda.mem_get_info(index)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(index))
        about = f"compute capability {capability}, {_gb(free)} of {_gb(total)} free"
        yield Line("ok", f"gpu {index}", f"{torch.cuda.get_device_name(index)}, {about}")
    precision = resolve_precision("auto", "auto")
    why = {
        "bf16-mixed": "the GPU computes in bf16",
        "16-mixed": "the GPU is too old for bf16",
        "32-true": "bf16 is slower on a CPU without AVX512-BF16 or AMX",
    }[precision]
    yield Line("ok", "precision", f"trainer.precision=auto is {precision} here: {why}")


def cpu() -> Iterator[Line]:
    """Report the cores that this process may use, and torch's threads."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} of {os.cpu_count()} cores, threads of torch: {threads}"
    if threads > cores:
        yield Line("warning", "cpu", f"{text}, too many: set trainer.num_threads={cores}")
    else:
        yield Line("ok", "cpu", text)


def memory() -> Iterator[Line]:
    """Report the memory of the machine or container, as used by ``data.batch_size=auto`` and error messages."""
    yield Line("ok", "memory", f"{_gb(total_memory())}, about {_gb(available_memory())} free")


# ---- Folders ---------------------------------------------------------------------------------------------------------
def folder(key: str, path: Path) -> Iterator[Line]:
    """Check that ``paths.KEY``, a folder that need not exist, can be written to and has free space."""
    above = next(p for p in (path, *path.parents) if os.path.lexists(p))  # the folder, or its closest existing parent
    needed = key == "output_dir" or (key == "cache_dir" and not _folders(path))  # existing caches are only read
    remedy = f"choose another with paths.{key}=DIR"
    if not above.is_dir():
        yield Line("missing", key, f"{above} is not a folder: {remedy}", fatal=needed)
    elif not os.access(above, os.W_OK | os.X_OK):
        yield Line("missing" if needed else "warning", key, f"{above} cannot be written to: {remedy}", fatal=needed)
    else:
        free = shutil.disk_usage(above).free
        text = f"{path}, {'' if above == path else 'will be created, '}{_gb(free)} free"
        enough = free >= LOW_SPACE
        yield Line("ok" if enough else "warning", key, text if enough else f"{text}: make room, or {remedy}")


def caches(cache_dir: Path) -> Iterator[Line]:
    """Report the disk space of decoded pictures and other caches."""
    found = _folders(cache_dir)
    num_bytes = sum(file.stat().st_size for path in found for file in os.scandir(path) if file.is_file())
    room = f" take {_gb(num_bytes)}; any of them may be deleted, and is rebuilt when it is needed" if found else ""
    yield Line("ok", "caches", f"{len(found) or 'none yet'} in {cache_dir}{room}")


def _folders(path: Path) -> list[str]:
    """List the readable folders in a folder, except the weights; empty if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries if e.is_dir() and os.access(e.path, os.R_OK | os.X_OK) and e.name != "weights"]
    except OSError:
        return []


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


# ---- Weights ---------------------------------------------------------------------------------------------------------
def weights(weights_dir: Path) -> Iterator[Line]:
    """Check the pretrained networks, whose files are in ``weights_dir``."""
    from flowergen.evaluation.extractors import INCEPTION_URL, INSTALLED_ALTERNATIVE
    from flowergen.modules.pretrained_weights import VGG16_URL, MissingWeights, load_efficientnet

    try:
        load_efficientnet("lite0", "model.perceptual=efficientnet")
        load_efficientnet("lite1", "extractor=efficientnet, and class consistency,")
        yield Line(
            "ok", "EfficientNet-Lite", "Lite0 for model.perceptual=efficientnet, Lite1 for extractor=efficientnet and classes"
        )
    except MissingWeights as error:
        yield Line("missing", "EfficientNet-Lite", str(error))
    perceptual = "model.perceptual=vgg16, and lpips with what torchmetrics brings"
    for what, use, url, size, instead in (
        ("VGG-16", perceptual, VGG16_URL, "528 MB", "model.perceptual=efficientnet"),
        ("Inception", "extractor=inception", INCEPTION_URL, "91 MB", INSTALLED_ALTERNATIVE),
    ):
        path = weights_dir / url.rpartition("/")[2]
        remedy = f"is downloaded when it is needed, or put {url} ({size}) into {weights_dir}; without it: {instead}"
        if not path.is_file():
            yield Line("missing", what, f"for {use}: {remedy}")
        elif is_published(path):
            yield Line("ok", what, f"{path}, for {use}")
        else:
            yield Line("warning", what, f"{path} is damaged, or not the published file: delete it; it {remedy}")


def is_published(path: Path) -> bool:
    """Return True if a file's SHA-256 starts with the digits at the end of its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rpartition("-")[2])


# ---- Data sets -------------------------------------------------------------------------------------------------------
def data_set(file: Path, paths: dict[str, str]) -> Iterator[Line]:
    """Check that the pictures of the data set of a file of ``conf/data`` exist; they are listed as in training, not decoded."""
    what = f"data={file.stem}"
    data: Any = OmegaConf.load(file)
    if data.pop("defaults", None):  # the built-in keys that all data sets share
        data = OmegaConf.merge(OmegaConf.load(Path(conf_dir()) / "pictures" / "default.yaml"), data)
    config = OmegaConf.create({"paths": paths, "seed": 0, "data": data})
    node: Any = OmegaConf.to_container(config, resolve=True)["data"]  # type: ignore[index, call-overload]
    root = node.get("root", "")
    if root in DATA_WITHOUT_FOLDER:
        yield Line("ok", what, DATA_WITHOUT_FOLDER[root])
        return
    try:
        listing = _listing(node)
    except UserError as error:
        yield Line("missing", what, f"{DOWNLOADED.get(schema_of(node), '')}{error}")
        return
    if listing is not None:
        yield Line("ok", what, f"{len(listing.names):,} pictures, {len(listing.class_names)} classes, in {root}")
    elif os.path.isdir(root):
        yield Line("ok", what, root)
    else:
        yield Line("missing", what, f"{root} is not a folder: set data.root=DIR")


def _listing(node: dict[str, Any]) -> Listing | None:
    """List the pictures of a built-in data set; None if only its class can list them."""
    from flowergen.data.celeba import list_celeba
    from flowergen.data.flowers102 import list_flowers102
    from flowergen.runs.build import build_datamodule

    schema = schema_of(node)
    if schema is Flowers102:
        return list_flowers102(Path(node["root"]), download=False)
    if schema is CelebA:
        return list_celeba(Path(node["root"]), download=False)
    if schema is not None and issubclass(schema, ImageFolder):
        check(node, schema, "data.")
        return build_datamodule({"data": node}).listing()
    return None


# ---- Other requirements ----------------------------------------------------------------------------------------------
def distributed() -> Iterator[Line]:
    """Check the backends of trainer=ddp."""
    import torch
    from torch import distributed

    num = torch.cuda.device_count()
    gloo = distributed.is_available() and distributed.is_gloo_available()
    nccl = distributed.is_available() and distributed.is_nccl_available()
    if gloo:
        yield Line("ok", "ddp on CPUs", "gloo found: use trainer=ddp_cpu")
    else:
        yield Line("missing", "ddp on CPUs", f"torch {torch.__version__} has no gloo: install a build that has it")
    if nccl:
        yield Line("ok", "ddp on GPUs", f"nccl found: trainer=ddp uses {num} GPUs" if num else "nccl found, but no GPU")
    elif num > 1:
        yield Line("missing", "ddp on GPUs", f"torch {torch.__version__} has no nccl for {num} GPUs: see https://pytorch.org")


def compiler() -> Iterator[Line]:
    """Check the C++ compiler that torch.compile calls on a CPU."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    found = shutil.which(name)
    remedy = "install one (apt-get install g++), or name it in the variable CXX"
    text = f"{found}, for torch.compile" if found else f"torch.compile finds no {name}: {remedy}"
    yield Line("ok" if found else "missing", "compiler", text)
