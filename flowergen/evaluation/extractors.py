"""Feature extractors for comparing sets of pictures, each with its exact resize.

As is usual for FID, pictures that are not square are resized to the square input of a network, regardless of their aspect
ratio, and the values of grey pictures are used for all three channels.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowergen.errors import UserError
from flowergen.modules.pretrained_weights import EFFICIENTNET_SHA256, fetch, load_efficientnet

INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INSTALLED_ALTERNATIVE = "extractor=efficientnet, whose weights are installed with flowergen"
MIN_PX, MAX_PX = 96, 224  # smallest and largest input of EfficientNet-Lite1


class Extractor(NamedTuple):
    """Maps pictures to features.

    Attributes:
        name: name on the metric card.
        weights: hash of the file or of the network.
        resize: description of the preprocessing.
        num_features: D.
        num_logits: number K of the network's own classes, 0 if it has none.
        features: (N, C, H, W) uint8, in colour or grey -> (N, D) and (N, K), float32 on the CPU.
    """

    name: str
    weights: str
    resize: str
    num_features: int
    num_logits: int
    features: Callable[[Tensor], tuple[Tensor, Tensor]]


def chosen(name: str, weights_dir: str | Path) -> str:
    """Resolve ``auto`` to Inception if its weights are present, else to EfficientNet-Lite1, which needs no download.

    Other names are returned unchanged.
    """
    if name != "auto":
        return name
    return "inception" if inception_path(weights_dir).is_file() else "efficientnet"


def inception_path(weights_dir: str | Path) -> Path:
    """Return the path of Inception's weights, whether or not they are present."""
    return Path(weights_dir).expanduser() / INCEPTION_URL.rpartition("/")[2]


def load_extractor(name: str, weights_dir: str | Path, device: torch.device) -> Extractor:
    """Load a network with its weights.

    Args:
        name: ``inception``, ``efficientnet``, ``torchvision:NAME``, or a file.
        weights_dir: directory of the weights; missing ones are downloaded to it.
        device: device to compute on.

    Raises:
        MissingWeights: the weights are missing and cannot be downloaded.
        UserError: they are damaged, or there is no such network.
    """
    if name == "inception":
        return _inception(weights_dir, device)
    if name == "efficientnet":
        return efficientnet_extractor("extractor=efficientnet", device)
    if name.startswith("torchvision:"):
        return _torchvision(name, weights_dir, device)
    return _file(Path(name).expanduser(), device)


def efficientnet_extractor(what_for: str, device: torch.device) -> Extractor:
    """Load EfficientNet-Lite1 trained on ImageNet: its pooled last features (N, 1280) and its 1000 class logits.

    Its input is a square of the picture's longer side, within bounds.

    Args:
        what_for: the option that needs it, for the error message.
        device: device to compute on.

    Raises:
        MissingWeights: the package of the weights is not installed or is damaged.
    """
    net = load_efficientnet("lite1", what_for).to(device)

    def prepare(x: Tensor) -> Tensor:
        return _resized(x, min(max(*x.shape[-2:], MIN_PX), MAX_PX))

    resize = f"bilinear with antialiasing to {MIN_PX} px if smaller, to {MAX_PX} px if larger (torch)"
    return _extractor_of("efficientnet", EFFICIENTNET_SHA256["lite1"], resize, net.classify, prepare, device)


def _resized(x: Tensor, size: int) -> Tensor:
    """Convert (N, 3, H, W) uint8 to (N, 3, size, size) in [0, 1]."""
    x = x.float() / 255
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _inception(weights_dir: str | Path, device: torch.device) -> Extractor:
    """Load torch-fidelity's Inception-v3 with the weights of the original FID (arXiv:1706.08500) and its exact resize."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = fetch(INCEPTION_URL, weights_dir, "Inception's weights (91 MB)", INSTALLED_ALTERNATIVE)
    _load(path)  # checked first, as the library would execute any code in the file
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except Exception as error:
        raise UserError(f"{path} does not hold torch-fidelity's Inception: delete it to download it again") from error
    net = net.to(device, memory_format=torch.channels_last)
    resize = "bilinear to 299 px as TensorFlow 1 does it, without antialiasing (torch-fidelity)"
    return _extractor_of(*_named("inception", path), resize, net, lambda x: x, device)


def _torchvision(name: str, weights_dir: str | Path, device: torch.device) -> Extractor:
    """Load a torchvision classifier; its features are the input of the last linear layer."""
    from torchvision import models

    model = name.partition(":")[2]
    if model not in models.list_models(module=models):  # excludes models for detection, video etc.
        raise UserError(f"extractor={name}: torchvision has no such classifier; examples are resnet50 and convnext_tiny")
    weights = models.get_model_weights(model).DEFAULT
    prepare = weights.transforms()
    size, crop, interpolation = prepare.resize_size[0], prepare.crop_size[0], prepare.interpolation.value
    prepare.resize_size = [size, size]  # instead of the shorter side, which would leave more to crop
    path = fetch(weights.url, weights_dir, f"torchvision's {model}", INSTALLED_ALTERNATIVE)
    state = _load(path)
    try:
        net = models.get_model(model, weights=None)
        net.load_state_dict(state)
    except Exception as error:
        raise UserError(f"{path} does not hold torchvision's {model}: delete it to download it again") from error
    if hasattr(net, "transform_input"):  # GoogLeNet and Inception: torchvision sets it when loading weights
        net.transform_input = True
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if not last:
        raise UserError(f"extractor={name}: it has no final linear layer, whose input would be the features: use another")
    resize = f"{interpolation} to {size} px with antialiasing, centre crop to {crop} px (torchvision {weights})"
    net = _BeforeLastLinear(net.to(device, memory_format=torch.channels_last).eval(), last[-1])
    return _extractor_of(*_named(name, path), resize, net, prepare, device)


class _BeforeLastLinear(nn.Module):
    def __init__(self, net: nn.Module, last: nn.Linear):
        super().__init__()
        self.net = net
        last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return self.features, logits


def _file(path: Path, device: torch.device) -> Extractor:
    """Load a TorchScript module with an attribute ``image_size``, or a ``torch.export`` program, whose input declares the size.

    Both take (N, 3, S, S) float32 in [0, 1] for any N and return features (N, D), or features and logits (N, K).
    """
    where = f"extractor={path}"
    try:
        net, size = _script(path, device) if path.suffix != ".pt2" else _exported(path)
        net = net.to(device)
    except UserError:
        raise
    except Exception as error:  # torch may raise anything for a file in another format
        raise UserError(
            f"{where} is neither TorchScript nor a .pt2 of torch.export ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
    resize = f"bilinear to {size} px with antialiasing (torch)"
    try:
        extractor = _extractor_of(path.name, _sha256(path), resize, net, lambda x: _resized(x, size), device)
        extractor.features(torch.zeros(3, 3, size, size, dtype=torch.uint8))  # a different N than in ``_extractor_of``
        return extractor
    except Exception as error:
        raise UserError(
            f"{where} must take (N, 3, {size}, {size}) float32 in [0, 1] for any N and return (N, D) features, or those and "
            f"(N, K) logits: {' '.join(str(error).split())[:200]}"
        ) from error


def _script(path: Path, device: torch.device) -> tuple[nn.Module, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated but still in use
        net = torch.jit.load(str(path), map_location=device).eval()
    size = getattr(net, "image_size", None)
    if not isinstance(size, int):
        raise UserError(
            f"extractor={path} does not declare its input size: give the module an attribute image_size (int) before scripting"
        )
    return net, size


def _exported(path: Path) -> tuple[nn.Module, int]:
    program = torch.export.load(str(path))
    first = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == first)
    return program.module(), int(shape[-1])


def _extractor_of(
    name: str,
    weights: str,
    resize: str,
    net: Callable[[Tensor], Any],
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Extractor:
    @torch.inference_mode()
    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        out = net(prepare(x.to(device).expand(-1, 3, -1, -1)))
        found, logits = out if isinstance(out, tuple | list) else (out, out.new_empty(len(x), 0))
        if found.ndim != 2 or logits.ndim != 2 or len(found) != len(x):
            raise ValueError(f"it returned {tuple(found.shape)} and {tuple(logits.shape)} for {len(x)} pictures")
        return found.float().cpu(), logits.float().cpu()

    example, logits = features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    return Extractor(name, weights, resize, example.shape[1], logits.shape[1], features)


def fields_of(extractor: Extractor | None) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the fields of features and logits for ``Rows``, without width if there is no extractor."""
    num_features, num_logits = (extractor.num_features, extractor.num_logits) if extractor else (0, 0)
    return {"features": ((num_features,), "<f4"), "logits": ((num_logits,), "<f4")}


def in_batches(extractor: Extractor, images: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield features (n, D) and logits (n, K), float32, of batches of pictures (N, C, H, W) uint8, possibly a memory map."""
    for first in range(0, len(images), batch_size):
        found, logits = extractor.features(torch.from_numpy(np.array(images[first : first + batch_size])))
        yield found.numpy(), logits.numpy()


def _load(path: Path) -> dict[str, Any]:
    """Load a state dict without executing code from the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): delete it to download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} contains no weights: delete it to download it again")
    return state


def _named(name: str, path: Path) -> tuple[str, str]:
    """Return the name for the card, and the file's hash; names of published files contain the start of their hash."""
    found = _sha256(path)
    return name if found.startswith(path.stem.rpartition("-")[2]) else f"{name} with other weights", found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
