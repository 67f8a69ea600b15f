import torch

from flowergen.nn.class_projection import ClassProjection


def test_it_is_the_projection_of_the_features_on_the_class_plus_what_no_class_changes() -> None:
    """Equation 4 of arXiv:1802.05637, and gradients to every part of it."""
    torch.manual_seed(0)
    net, features, label = ClassProjection(6, 3, 4), torch.randn(5, 6, 2, 2), torch.tensor([0, 1, 2, 3, 0])
    logits = net(features, label)
    phi = net.phi(features.mean((2, 3)))
    for row in range(5):
        expected = net.embed.weight[label[row]] @ phi[row] / 2 + net.psi(phi[row])
        torch.testing.assert_close(logits[row], expected)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
