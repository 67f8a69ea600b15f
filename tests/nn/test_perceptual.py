import pytest
import torch
import torchvision
from torch import nn

from flowergen.nn.perceptual import VGG16_LAYERS, VGG16Features

LAYERS = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]


@pytest.fixture(scope="module")
def oracle() -> nn.Sequential:
    """torchvision's own network with random weights, without the half gigabyte behind the convolutions."""
    with torch.device("meta"):
        vgg = torchvision.models.vgg16(weights=None)
    features = vgg.features.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for parameter in features.parameters():
        nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.normal_(parameter, std=0.1)
    return features


@pytest.fixture(scope="module")
def state_dict(oracle: nn.Sequential) -> dict[str, torch.Tensor]:
    """As torchvision's file has it."""
    weights = {f"features.{name}": value.detach() for name, value in oracle.state_dict().items()}
    return weights | {"classifier.0.weight": torch.zeros(1)}


@pytest.fixture(scope="module")
def net(state_dict: dict[str, torch.Tensor]) -> VGG16Features:
    return VGG16Features(state_dict, LAYERS)


def by_hand(oracle: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Names counted as in the papers: the block, then the convolution within it."""
    h = torch.stack(
        [(x[:, 0] - 0.485) / 0.229, (x[:, 1] - 0.456) / 0.224, (x[:, 2] - 0.406) / 0.225],
        dim=1,
    )
    block, conv, activations = 1, 0, {}
    with torch.no_grad():
        for layer in oracle:
            h = layer(h.clone())
            if isinstance(layer, nn.Conv2d):
                conv += 1
            elif isinstance(layer, nn.ReLU):
                activations[f"relu{block}_{conv}"] = h.clone()
            else:
                block, conv = block + 1, 0
    return activations


def test_activations_are_those_of_torchvision_s_network(net: VGG16Features, oracle: nn.Sequential):
    """Normalised as ImageNet, named as in the papers, and left as they are by the layers behind them."""
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = by_hand(oracle, x)
    activations = net(x)
    assert set(VGG16_LAYERS) == set(LAYERS)
    assert [a.shape[1] for a in activations] == [64, 128, 256, 512, 512]
    for name, activation in zip(LAYERS, activations, strict=True):
        torch.testing.assert_close(activation, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [["relu1_2"], ["relu3_3", "relu2_2"]])
def test_nothing_is_computed_behind_the_last_layer_asked_for(
    layers: list[str], state_dict: dict[str, torch.Tensor], oracle: nn.Sequential
):
    net, x = VGG16Features(state_dict, layers), torch.rand(1, 3, 32, 32)
    assert len(net.features) == 1 + max(VGG16_LAYERS[name] for name in layers)
    expected = by_hand(oracle, x)
    for name, activation in zip(sorted(layers), net(x), strict=True):
        torch.testing.assert_close(activation, expected[name], rtol=1e-4, atol=1e-4)


def test_grey_is_repeated_for_the_three_colours(net: VGG16Features):
    x = torch.rand(2, 1, 24, 32)
    for grey, colour in zip(net(x), net(x.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(grey, colour)


def test_it_is_frozen_and_gradients_reach_the_picture(net: VGG16Features):
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.train().training
    assert not any(module.training for module in net.modules())
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    sum(activation.sum() for activation in net(x)).backward()
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in net.parameters())


def test_no_picture_of_a_batch_touches_another(net: VGG16Features):
    x = torch.rand(3, 3, 16, 16)
    for alone, together in zip(net(x[1:2]), net(x), strict=True):
        torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-4)


def test_weights_that_lack_a_layer_are_refused(state_dict: dict[str, torch.Tensor]):
    """Never a silent random network."""
    lacking = {name: value for name, value in state_dict.items() if name != "features.28.weight"}
    with pytest.raises(RuntimeError, match=r"28\.weight"):
        VGG16Features(lacking, ["relu1_2"])
