import hashlib
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision import models
from torchvision.transforms import functional as transforms

from flowergen.errors import UserError
from flowergen.evaluation.extractors import INCEPTION_URL, Extractor, _named, chosen, in_batches, load_extractor
from flowergen.modules.pretrained_weights import EFFICIENTNET_SHA256, MissingWeights, load_efficientnet
from flowergen.randomness import initialisation

CPU = torch.device("cpu")
INCEPTION = INCEPTION_URL.rpartition("/")[2]
RESNET = "resnet18-f37072fd.pth"
SMALLEST = 96  # px that EfficientNet-Lite1 sees


def uint8(num: int, size: int | tuple[int, int], channels: int = 3) -> Tensor:
    """Smooth pictures: of noise, all resizes would give nearly the same."""
    coarse = torch.rand(num, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size, mode="bicubic").clamp(0, 1).mul(255).round().to(torch.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(url: str, *args: Any, **kwargs: Any) -> None:
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


# -- Inception


@pytest.fixture(scope="module")
def inception_dir(inception_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / INCEPTION).symlink_to(inception_file)
    return folder


@pytest.fixture(scope="module")
def inception(inception_dir: Path) -> Extractor:
    return load_extractor("inception", inception_dir, CPU)


def test_inception_is_torch_fidelitys_on_uint8_with_its_own_resize(inception: Extractor, inception_file: Path) -> None:
    """Its features before the last layer, and the logits without bias that its Inception Score takes."""
    x = uint8(2, 40)
    net = FeatureExtractorInceptionV3("there", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file))
    with torch.inference_mode():
        expected, logits = net(x)
    found = inception.features(x)
    assert [part.dtype for part in found] == [torch.float32] * 2
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], logits, rtol=1e-4, atol=1e-4)
    assert (inception.num_features, inception.num_logits) == (2048, 1008)
    assert expected.std() > 1e-3


def test_inception_is_known_by_the_hash_of_its_file(inception: Extractor, inception_file: Path) -> None:
    """And nothing is downloaded where a file lies under its published name; other weights are not called Inception's."""
    assert inception.weights == hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert inception.name == "inception with other weights"
    assert "299" in inception.resize
    assert "TensorFlow" in inception.resize


def test_a_file_with_the_hash_in_its_name_is_the_published_one(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    published, other = tmp_path / f"resnet18-{digest[:8]}.pth", tmp_path / "resnet18-f37072fd.pth"
    for path in (published, other):
        path.write_bytes(b"weights")
    assert _named("net", published) == ("net", digest)
    assert _named("net", other) == ("net with other weights", digest)


@pytest.mark.parametrize(("name", "file"), [("inception", INCEPTION), ("torchvision:resnet18", RESNET)])
def test_missing_weights_are_an_error_that_says_where_from_where_to_and_what_else(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as error:
        load_extractor(name, tmp_path / "weights", CPU)
    text = one_line(error)
    assert re.search(rf"https://\S+/{re.escape(file)} ", text)
    assert str(tmp_path / "weights") in text
    assert "paths.weights_dir" in text
    assert "extractor=efficientnet" in text


@pytest.mark.parametrize(("name", "file"), [("inception", INCEPTION), ("torchvision:resnet18", RESNET)])
@pytest.mark.parametrize("content", ["noise", "empty", "cut", "list", "somebody else's", "bomb"])
def test_a_file_that_is_not_the_weights_is_an_error_and_no_code_in_it_runs(
    content: str, name: str, file: str, tmp_path: Path
) -> None:
    path, mark = tmp_path / file, tmp_path / "exploded"
    if content == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif content == "empty":
        path.touch()
    elif content == "cut":
        torch.save({"fc.weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-500])
    elif content == "list":
        torch.save([torch.zeros(3)], path)
    elif content == "somebody else's":
        torch.save(nn.Conv2d(3, 4, 3).state_dict(), path)
    else:
        torch.save({"fc.weight": Bomb(mark)}, path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} .*delete it") as error:
        load_extractor(name, tmp_path, CPU)
    one_line(error)
    assert not mark.exists()
    if content == "bomb":
        torch.load(path, weights_only=False)
        assert mark.exists(), "it is one"


# -- torchvision


def stored(name: str, folder: Path, seed: int = 0) -> nn.Module:
    """A network of torchvision's with random weights, and its file as torchvision names it."""
    with initialisation(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = models.get_model(name, weights=None).eval()
        for weight in net.parameters():  # with some of torchvision's, hardly anything depends on the picture
            if weight.ndim == 4:
                nn.init.kaiming_normal_(weight)
    torch.save(net.state_dict(), folder / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2])
    return net


def prepared(x: Tensor, size: int, crop: int) -> Tensor:
    """What torchvision documents for its classifiers."""
    x = transforms.center_crop(transforms.resize(x, [size], antialias=True), [crop, crop]).float() / 255
    return (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def test_a_torchvision_network_gives_what_goes_into_its_last_layer(tmp_path: Path) -> None:
    """Computed independently: everything but ``fc``, on the documented preparation; logits are the network's."""
    net = stored("resnet18", tmp_path)
    extractor = load_extractor("torchvision:resnet18", tmp_path, CPU)
    x = uint8(2, 48)
    with torch.no_grad():
        y = prepared(x, 256, 224)
        expected, logits = nn.Sequential(*list(net.children())[:-1])(y).flatten(1), net(y)
    found = extractor.features(x)
    assert (extractor.num_features, extractor.num_logits) == (512, 1000)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], logits, rtol=1e-4, atol=1e-4)
    assert extractor.weights == hashlib.sha256((tmp_path / RESNET).read_bytes()).hexdigest()
    assert extractor.resize.startswith("bilinear to 256 px with antialiasing, centre crop to 224 px (torchvision ")
    assert "ResNet18_Weights.IMAGENET1K_V1" in extractor.resize


def test_networks_that_torchvision_gives_other_inputs_with_weights_get_them_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GoogLeNet's weights want another scale of the input, which torchvision sets only where it loads them itself."""
    stored("googlenet", tmp_path)
    weights = models.GoogLeNet_Weights.DEFAULT
    state = torch.load(tmp_path / weights.url.rpartition("/")[2], weights_only=True)
    monkeypatch.setattr(models.GoogLeNet_Weights, "get_state_dict", lambda *args, **kwargs: state)
    x = uint8(2, 48)
    with torch.no_grad():
        expected = models.googlenet(weights=weights).eval()(weights.transforms()(x))
    found = load_extractor("torchvision:googlenet", tmp_path, CPU).features(x)[1]
    assert expected.std(0).max() > 1e-2, "the picture matters"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    ["resnet19", "", "fasterrcnn_resnet50_fpn", "r3d_18", "fcn_resnet50", "raft_small", "quantized_resnet18", "get_model"],
)
def test_what_is_no_classifier_of_torchvisions_is_refused_before_anything_is_fetched(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"extractor=torchvision:{model}: .*no such classifier; examples are resnet50") as error:
        load_extractor(f"torchvision:{model}", tmp_path, CPU)
    assert not isinstance(error.value, MissingWeights)
    one_line(error)


def test_a_classifier_without_a_linear_layer_is_refused(tmp_path: Path) -> None:
    stored("squeezenet1_1", tmp_path)
    with pytest.raises(UserError, match="no final linear layer") as error:
        load_extractor("torchvision:squeezenet1_1", tmp_path, CPU)
    one_line(error)


# -- files


class Net(nn.Module):
    """Means of the four quarters of a picture; with logits if asked for. ``view`` wants a contiguous input."""

    def __init__(self, logits: bool, image_size: int = 12):
        super().__init__()
        self.image_size, self.logits = image_size, logits
        with initialisation(0):
            self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        quarters = x.view(x.shape[0], -1).view(x.shape[0], 3, 2, self.image_size // 2, 2, self.image_size // 2)
        features = quarters.mean((3, 5)).flatten(1)
        if self.logits:
            return features, self.linear(features)
        return features


@pytest.fixture(autouse=True)
def torchscript_is_deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def saved(kind: str, net: nn.Module, folder: Path, num: int | None = None) -> Path:
    """A file of either kind; ``num`` fixes the batch of an exported program."""
    net = net.eval()
    example = torch.rand(num or 2, 3, 12, 12)
    if kind == ".pt2":
        dynamic = None if num else ({0: torch.export.Dim("num")},)
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=dynamic), folder / "net.pt2")
        return folder / "net.pt2"
    program = torch.jit.trace(net, example) if kind == "trace" else torch.jit.script(net)
    torch.jit.save(program, str(folder / "net.pt"))
    return folder / "net.pt"


class Scripted(nn.Module):
    """TorchScript wants one type of result."""

    def __init__(self, image_size: int = 12):
        super().__init__()
        self.image_size = image_size

    def forward(self, x: Tensor) -> Tensor:
        half = self.image_size // 2
        return x.view(x.shape[0], -1).view(x.shape[0], 3, 2, half, 2, half).mean((3, 5)).flatten(1)


@pytest.mark.parametrize("size", [12, 7, 40])
@pytest.mark.parametrize("kind", ["script", ".pt2", ".pt2 with logits"])
def test_a_file_gets_pictures_of_its_size_in_0_to_1(kind: str, size: int, tmp_path: Path) -> None:
    """Smaller and larger ones are resized as it says: bilinear with antialiasing; those of its size are not touched."""
    net = Net(logits="logits" in kind) if ".pt2" in kind else Scripted()
    path = saved(kind.partition(" ")[0], net, tmp_path)
    extractor = load_extractor(str(path), tmp_path, CPU)
    x = uint8(5, size)
    y = x.float() / 255
    if size != 12:
        y = F.interpolate(y, (12, 12), mode="bilinear", align_corners=False, antialias=True)
        pillow = Image.fromarray(x[0].permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(y[0].permute(1, 2, 0) * 255, np.asarray(pillow), atol=1)
    expected = y.reshape(5, 3, 2, 6, 2, 6).mean((3, 5)).flatten(1)
    for num in (5, 1):
        features, logits = extractor.features(x[:num])
        torch.testing.assert_close(features, expected[:num])
        assert logits.shape == (num, extractor.num_logits)
        if "logits" in kind:
            torch.testing.assert_close(logits, net.linear(expected[:num]).detach())
    assert (extractor.num_features, extractor.num_logits) == (12, 5 if "logits" in kind else 0)
    assert extractor.weights == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.resize == "bilinear to 12 px with antialiasing (torch)"
    assert extractor.name == path.name, "whose is told by the hash, wherever the file lies"


def test_a_torchscript_file_without_its_size_is_an_error_that_says_how_to_declare_it(tmp_path: Path) -> None:
    path = saved("trace", nn.Flatten(), tmp_path)
    with pytest.raises(UserError, match=r"extractor=.*attribute image_size \(int\) before scripting") as error:
        load_extractor(str(path), tmp_path, CPU)
    one_line(error)


class Wrong(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.image_size, self.kind = 12, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "a map":
            return x
        if self.kind == "one vector":
            return x.flatten(1).mean(0, keepdim=True)
        return x.flatten(1)[:, None] @ torch.ones(5, 3)


@pytest.mark.parametrize("kind", ["a map", "one vector", "a product that does not fit"])
def test_a_file_that_returns_something_else_is_an_error_that_says_what_is_wanted(kind: str, tmp_path: Path) -> None:
    path = saved("script", Wrong(kind), tmp_path)
    with pytest.raises(UserError, match=r"must take \(N, 3, 12, 12\) float32 in \[0, 1\]") as error:
        load_extractor(str(path), tmp_path, CPU)
    one_line(error)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_an_exported_program_for_one_number_of_pictures_is_refused_at_once(num: int, tmp_path: Path) -> None:
    """Rather than at the last batch of an evaluation."""
    with pytest.raises(UserError, match="for any N") as error:
        load_extractor(str(saved(".pt2", Net(logits=False), tmp_path, num)), tmp_path, CPU)
    one_line(error)


@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net"])
@pytest.mark.parametrize("content", ["text", "bomb", "state dict", "missing", "folder"])
def test_a_file_of_something_else_is_one_line(content: str, name: str, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "exploded"
    if content == "text":
        path.write_text("these are\nmy weights\n")
    elif content == "bomb":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif content == "state dict":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=f"extractor={re.escape(str(path))} is neither TorchScript nor") as error:
        load_extractor(str(path), tmp_path, CPU)
    one_line(error)
    assert not mark.exists()


# -- EfficientNet-Lite1


@pytest.mark.parametrize(("size", "seen"), [(40, SMALLEST), (SMALLEST + 4, SMALLEST + 4), (300, 224)])
def test_efficientnet_is_lite1_on_pictures_that_are_enlarged_and_shrunk_within_bounds(size: int, seen: int) -> None:
    """Resized independently, by torchvision; its pooled features and ImageNet's classes, of the released file of weights."""
    extractor = load_extractor("efficientnet", "nowhere", CPU)
    x = uint8(2, size)
    with torch.no_grad():
        expected = load_efficientnet("lite1", "a test").classify(
            transforms.resize(x.float() / 255, [seen, seen], antialias=True)
        )
    for found, wanted in zip(extractor.features(x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert expected[0].std(0).max() > 1e-2, "the picture matters"
    assert extractor[:2] == ("efficientnet", EFFICIENTNET_SHA256["lite1"])
    assert (extractor.num_features, extractor.num_logits) == (1280, 1000)
    assert f"to {SMALLEST} px" in extractor.resize


def test_auto_is_inception_where_its_file_is_and_efficientnet_elsewhere(tmp_path: Path) -> None:
    """Nothing is downloaded for it; other names are what they are."""
    assert chosen("auto", tmp_path) == "efficientnet"
    for name in ("inception", "efficientnet", "torchvision:resnet18"):
        assert chosen(name, tmp_path) == name
    (tmp_path / INCEPTION).touch()
    assert chosen("auto", tmp_path) == "inception"
    assert chosen("efficientnet", tmp_path) == "efficientnet"


# -- grey pictures, and pictures that are not square


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(48, 64), (12, 20), (64, 12)])
def test_a_file_gets_squares_in_colour_whatever_shape_the_pictures_have(
    size: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    extractor = load_extractor(str(saved("script", Scripted(), tmp_path)), tmp_path, CPU)
    x = uint8(3, size, channels)
    y = F.interpolate(x.float() / 255, (12, 12), mode="bilinear", align_corners=False, antialias=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(extractor.features(x)[0], y.reshape(3, 3, 2, 6, 2, 6).mean((3, 5)).flatten(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "seen"), [((48, 64), SMALLEST), ((48, 120), 120), ((240, 100), 224)])
def test_efficientnet_gets_squares_in_colour_of_the_longer_side(size: tuple[int, int], seen: int, channels: int) -> None:
    x = uint8(2, size, channels)
    square = transforms.resize(x.float() / 255, [seen, seen], antialias=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = load_efficientnet("lite1", "a test").classify(square)
    for found, wanted in zip(load_extractor("efficientnet", "nowhere", CPU).features(x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_torchvision_network_gets_squares_in_colour(channels: int, tmp_path: Path) -> None:
    net, x = stored("resnet18", tmp_path), uint8(2, (48, 64), channels)
    square = transforms.resize(x.expand(-1, 3, -1, -1), [256, 256], antialias=True)
    with torch.no_grad():
        expected = net(prepared(square, 256, 224))
    found = load_extractor("torchvision:resnet18", tmp_path, CPU).features(x)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_inception_gets_colour(inception: Extractor) -> None:
    x = uint8(1, (48, 64), channels=1)
    for found, expected in zip(inception.features(x), inception.features(x.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(found, expected)


# -- many pictures


def test_batches_are_all_pictures_in_their_order(tmp_path: Path) -> None:
    seen: list[int] = []

    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(x))
        return x.float().mean((2, 3)), x[:, :2, 0, 0].float()

    images = uint8(7, 8).numpy()
    shutil.rmtree(tmp_path)
    parts = list(in_batches(Extractor("fake", "", "", 3, 2, features), images, 3))
    assert seen == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate([a for a, _ in parts]), images.mean((2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(np.concatenate([b for _, b in parts]), images[:, :2, 0, 0])
