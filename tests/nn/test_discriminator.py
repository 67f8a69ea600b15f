from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from flowergen.nn.discriminator import PatchDiscriminator, frozen, logits_side, num_halvings_for, receptive_field


def build(norm: Any, num_halvings: int = 2, channels: int = 4) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(channels, num_halvings, norm)


def weights(net: PatchDiscriminator) -> list[torch.Tensor]:
    return [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]


def test_the_receptive_field_is_pix2pix_s():
    """70 px for three halvings, 16 px for one (arXiv:1611.07004, appendix 6.1.2)."""
    assert [receptive_field(n) for n in (1, 2, 3)] == [16, 34, 70]


@pytest.mark.parametrize("num_halvings", [0, 1, 2, 3])
def test_one_logit_sees_a_square_of_exactly_the_receptive_field(num_halvings: int):
    """By the support of its gradient; without GroupNorm, which hears of the whole picture."""
    net, field = build("spectral", num_halvings), receptive_field(num_halvings)
    size = 2 * field + 8
    x = torch.randn(1, 3, size, size, requires_grad=True)
    logits = net(x).logits
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        where = seen.any(axis).nonzero().flatten()
        assert 0 < where[0] <= where[-1] < size - 1, "the patch reaches the border: take a larger picture"
        assert where[-1] - where[0] + 1 == field
    assert seen.sum() == field**2


@pytest.mark.parametrize("norm", ["group", "spectral"])
@pytest.mark.parametrize("size", [28, 32, 45, 64, 128, 150, 256])
def test_there_is_a_map_of_logits_and_never_a_single_one(size: int, norm: Any):
    """S / 2^n - 2 a side, features of each hidden layer, widths doubling up to eight times."""
    num_halvings = num_halvings_for(size)
    net = build(norm, num_halvings, channels=2)
    output = net(torch.randn(2, 3, size, size))
    side = size // 2**num_halvings - 2
    assert side > 1
    assert output.logits.shape == (2, 1, side, side)
    assert output.logits.dtype == torch.float32
    assert [features.shape[1] for features in output.features] == [2 * min(2**i, 8) for i in range(num_halvings + 1)]


def test_logits_have_no_bounds():
    """No sigmoid at the end: both losses want logits."""
    logits = build("spectral")(1000 * torch.randn(2, 3, 32, 32)).logits
    assert logits.min() < -1
    assert logits.max() > 1


@pytest.mark.parametrize("norm", ["group", "spectral"])
@pytest.mark.parametrize("training", [True, False])
def test_no_picture_of_a_batch_touches_another(norm: Any, training: bool):
    net = build(norm).train(training)
    x = torch.randn(3, 3, 32, 32, requires_grad=True)
    logits = net(x).logits
    (gradient,) = torch.autograd.grad(logits[1].sum(), x)
    assert gradient[1].abs().max() > 0
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0
    torch.testing.assert_close(net(x[1:2]).logits, logits[1:2], rtol=1e-4, atol=1e-5)


def test_the_two_norms_are_what_they_say():
    group, spectral = build("group"), build("spectral")
    assert sum(isinstance(module, nn.GroupNorm) for module in group.modules()) == 2, "after each hidden layer but the first"
    assert not any(isinstance(module, nn.GroupNorm) for module in spectral.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for net in (group, spectral) for module in net.modules())
    parametrized = [parametrize.is_parametrized(m, "weight") for m in spectral.modules() if isinstance(m, nn.Conv2d)]
    assert parametrized == [True] * 4
    assert not any(parametrize.is_parametrized(module) for module in group.modules())


def test_spectral_norms_become_one():
    """By a singular value decomposition of each weight as a matrix, from weights far from where the first estimate was made."""
    net = build("spectral")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, parametrize.ParametrizationList):
                module.original.normal_(std=3)
    largest = [torch.linalg.svdvals(weight.flatten(1))[0].item() for weight in weights(net)]
    assert max(largest) > 1.1, "the first estimate should be wrong for the test to show anything"
    for _ in range(300):
        net.update_spectral_norms()
    for weight in weights(net):
        assert torch.linalg.svdvals(weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-4)


def test_each_call_of_update_is_one_power_iteration():
    """u <- W v / |W v|, v <- W^T u / |W^T u|, and the weight is W / u^T W v (Miyato et al. 2018, algorithm 1)."""
    net = build("spectral")
    weight = net.hidden[1][0].parametrizations.weight
    with torch.no_grad():
        weight.original.normal_()
    w, v = weight.original.detach().flatten(1), weight[0]._v.clone()
    for _ in range(3):
        net.update_spectral_norms()
        u = nn.functional.normalize(w @ v, dim=0)
        v = nn.functional.normalize(w.T @ u, dim=0)
        torch.testing.assert_close(net.hidden[1][0].weight.flatten(1), w / (u @ w @ v))


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_a_forward_pass_changes_nothing_and_is_the_same_in_training_and_evaluation(norm: Any):
    """However often it is called: for the other network's loss, in validation, in accumulated parts."""
    net, x = build(norm), torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits_of_calls = []
    for mode in (True, False, True):
        nn.Module.train(nn.Sequential(net), mode)  # as a parent does
        logits_of_calls += [net(x).logits for _ in range(2)]
    for logits in logits_of_calls[1:]:
        assert torch.equal(logits, logits_of_calls[0])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_forward_pass_after_an_update_changes_nothing_either():
    net, x = build("spectral").train(), torch.randn(2, 3, 32, 32)
    net.update_spectral_norms()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert torch.equal(net(x).logits, net(x).logits)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_frozen_lets_gradients_through_and_none_in(norm: Any):
    net, x = build(norm), torch.randn(2, 3, 32, 32, requires_grad=True)
    with frozen(net):
        net(x).logits.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    net(x).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_frozen_ends_with_an_error_too():
    net = build("group")
    with pytest.raises(RuntimeError), frozen(net):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_graph_from_before_still_brings_gradients_after_frozen():
    """The discriminator's opinion of real pictures is formed before the generator's turn and used after it."""
    net, x = build("spectral"), torch.randn(2, 3, 32, 32)
    (expected,) = torch.autograd.grad(net(x).logits.sum(), net.to_logits.bias)
    logits = net(x).logits
    with frozen(net):
        net(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    torch.testing.assert_close(net.to_logits.bias.grad, expected)


def test_patches_of_a_grey_rectangle_have_a_logit_each():
    """The side known beforehand is the short one."""
    net = PatchDiscriminator(4, 2, "group", image_channels=1)
    logits = net(torch.zeros(1, 1, 48, 64)).logits
    assert logits.shape == (1, 1, logits_side(48, 2), logits_side(64, 2))


@pytest.mark.parametrize("image_size", [28, 64, 90, 150])
@pytest.mark.parametrize("num_halvings", [1, 2, 3])
def test_the_side_of_the_map_of_logits_is_known_beforehand(image_size: int, num_halvings: int) -> None:
    side = logits_side(image_size, num_halvings)
    if side > 0:
        output = PatchDiscriminator(2, num_halvings, "group")(torch.zeros(1, 3, image_size, image_size))
        assert output.logits.shape == (1, 1, side, side)
