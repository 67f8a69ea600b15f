import math

import pytest
import torch
import torch.nn.functional as F

from flowergen.losses.center import center_pull, center_push, class_cross_entropy


@pytest.fixture
def latents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=g), torch.randn(3, 4, generator=g), torch.tensor([0, 2, -1, 1, 2, -1])


def test_the_pull_is_half_the_squared_distance_to_the_own_centre(latents):
    p, centers, label = latents
    expected = [0 if y < 0 else 0.5 * math.dist(a, centers[y].tolist()) ** 2 for a, y in zip(p.tolist(), label, strict=True)]
    torch.testing.assert_close(center_pull(p, centers, label), torch.tensor(expected))


def test_the_pull_moves_latent_and_centre_towards_each_other(latents):
    """d/dp = p - c_y and d/dc_y = the sum of c_y - p over its own."""
    p, centers, label = latents
    p, centers = p.requires_grad_(), centers.requires_grad_()
    center_pull(p, centers, label).sum().backward()
    labelled = label >= 0
    torch.testing.assert_close(p.grad[labelled], (p - centers[label])[labelled].detach())
    for y in range(3):
        torch.testing.assert_close(centers.grad[y], (centers[y] - p[label == y]).sum(0).detach())


def test_the_unlabelled_add_nothing_to_values_and_gradients(latents):
    """Not even to the centre of the last class, which index -1 is."""
    p, centers, _ = (value.clone() for value in latents)
    label = torch.full((6,), -1)
    p, centers = p.requires_grad_(), centers.requires_grad_()
    logits = torch.randn(6, 3, requires_grad=True)
    loss = center_pull(p, centers, label) + class_cross_entropy(logits, label)
    assert loss.tolist() == [0.0] * 6
    loss.sum().backward()
    for value in (p, centers, logits):
        assert value.grad.abs().max() == 0


def test_the_push_is_the_mean_over_pairs_of_a_squared_hinge():
    g = torch.Generator().manual_seed(1)
    centers = torch.randn(5, 4, generator=g)
    pairs = [(j, k) for j in range(5) for k in range(j)]
    distances = [math.dist(centers[j].tolist(), centers[k].tolist()) for j, k in pairs]
    margin = sorted(distances)[5]  # half of the pairs within
    expected = sum(max(0, margin - distance) ** 2 for distance in distances) / len(pairs)
    assert center_push(centers, margin).item() == pytest.approx(expected, rel=1e-5)


def test_the_push_ends_at_the_margin():
    centers = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    assert center_push(centers, 5.5).item() == pytest.approx(0.25)
    beyond = center_push(centers, 4.9)
    assert beyond.item() == 0
    beyond.backward()
    assert centers.grad.abs().max() == 0


def test_the_push_drives_near_centres_apart():
    centers = torch.tensor([[0.0, 0.0], [0.3, 0.4], [-0.2, 0.3]], requires_grad=True)
    optimizer = torch.optim.SGD([centers], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        center_push(centers, 2.0).backward()
        optimizer.step()
    assert torch.pdist(centers.detach()).min() > 1.99


def test_the_push_has_a_finite_gradient_where_centres_are_equal():
    centers = torch.zeros(3, 2, requires_grad=True)
    value = center_push(centers, 2.0)
    assert value.item() == pytest.approx(4.0, rel=1e-5)
    value.backward()
    assert centers.grad.isfinite().all()


def test_a_single_class_is_not_pushed():
    centers = torch.ones(1, 2, requires_grad=True)
    value = center_push(centers, 2.0)
    assert value.item() == 0
    value.backward()
    assert centers.grad.abs().max() == 0


def test_pulling_makes_classes_narrower():
    """The ancestors' loss rewarded variance within classes: SGD on free points shrinks it, and centres meet the means."""
    g = torch.Generator().manual_seed(2)
    p, centers = torch.randn(40, 3, generator=g).requires_grad_(), torch.randn(4, 3, generator=g).requires_grad_()
    label = torch.arange(40) % 4

    def variance() -> float:
        return sum(p.detach()[label == y].var(0).sum().item() for y in range(4))

    before = variance()
    optimizer = torch.optim.SGD([p, centers], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (center_pull(p, centers, label).sum() + 0.1 * center_push(centers, 2.0)).backward()
        optimizer.step()
    assert variance() < before * 0.95 ** (2 * 20) * 1.001, "each step takes a twentieth off every distance from the class mean"
    for y in range(4):
        torch.testing.assert_close(centers[y].detach(), p.detach()[label == y].mean(0), rtol=0, atol=0.05)


def test_cross_entropy_is_torch_s_where_there_is_a_label():
    g = torch.Generator().manual_seed(3)
    logits, label = 3 * torch.randn(5, 7, generator=g), torch.tensor([0, 6, -1, 3, 3])
    values = class_cross_entropy(logits, label)
    probability = torch.softmax(logits.double(), 1)
    expected = [0.0 if y < 0 else -math.log(probability[n, y].item()) for n, y in enumerate(label.tolist())]
    torch.testing.assert_close(values, torch.tensor(expected))
    torch.testing.assert_close(values[[0, 1, 3]], F.cross_entropy(logits[[0, 1, 3]], label[[0, 1, 3]], reduction="none"))


def test_half_precision_is_computed_in_float32(latents):
    p, centers, label = latents
    for value, expected in (
        (center_pull(p.half(), centers.half(), label), center_pull(p.half().float(), centers.half().float(), label)),
        (center_push(centers.half(), 2.0), center_push(centers.half().float(), 2.0)),
        (class_cross_entropy(p.half(), label), class_cross_entropy(p.half().float(), label)),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
