import pytest
import torch
from torch import Tensor

from flowergen.diffusion.guidance import guided, guided_prediction

NULL = 3


class Recorder:
    """A network whose answer is x times a factor of its label, plus t; it keeps what it was asked."""

    factors = torch.tensor([2.0, 5.0, -1.0, 0.5])  # the last one of no class

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.asked.append((x, t, label))
        return x * self.factors[label].view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))


def expected(x: Tensor, label: Tensor, scale: float, t: float) -> Tensor:
    """Written out, row by row: unconditional + scale (conditional - unconditional)."""
    rows = [row * (0.5 + scale * (Recorder.factors[k].item() - 0.5)) + t / 1000 for row, k in zip(x, label, strict=True)]
    return torch.stack(rows)


def ask(
    network: Recorder, x: Tensor, label: Tensor, scale: float, t: float = 500.0, low: float = 0.0, high: float = 1.0
) -> Tensor:
    return guided_prediction(network, x, t, label, NULL, scale, (low, high), 1000)


def test_scale_1_is_the_conditional_answer_itself_and_asks_for_no_other(x: Tensor):
    """Bit for bit, and half the price."""
    network, label = Recorder(), torch.tensor([0, 1, 2])
    out = ask(network, x, label, 1.0)
    assert torch.equal(out, Recorder()(x, torch.full((3,), 500.0), label))
    assert len(network.asked) == 1
    asked_x, asked_t, asked_label = network.asked[0]
    assert torch.equal(asked_x, x)
    assert asked_t.tolist() == [500.0] * 3
    assert torch.equal(asked_label, label)


def test_scale_0_is_the_unconditional_answer(x: Tensor):
    out = ask(Recorder(), x, torch.tensor([0, 1, 2]), 0.0)
    assert torch.equal(out, Recorder()(x, torch.full((3,), 500.0), torch.full((3,), NULL)))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.5, 4.0])
def test_guidance_goes_from_the_unconditional_answer_through_the_conditional_one(x: Tensor, scale: float):
    """Each row towards its own class."""
    label = torch.tensor([2, 0, 1])
    torch.testing.assert_close(ask(Recorder(), x, label, scale), expected(x, label, scale, 500.0))


def test_guidance_is_linear_in_its_scale(x: Tensor):
    """guided(c, u, s) lies on the line through u (s = 0) and c (s = 1)."""
    conditional, unconditional = x[:1], x[1:2]
    assert torch.equal(guided(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guided(conditional, unconditional, 1.0), conditional)
    middle = (guided(conditional, unconditional, 1.0) + guided(conditional, unconditional, 6.0)) / 2
    torch.testing.assert_close(guided(conditional, unconditional, 3.5), middle)


def test_both_halves_are_one_batch(x: Tensor):
    """2 N rows in one question: the same pictures twice, at the same time, with their labels and then without."""
    network = Recorder()
    ask(network, x, torch.tensor([0, 1, 2]), 3.0)
    assert len(network.asked) == 1
    asked_x, asked_t, asked_label = network.asked[0]
    assert torch.equal(asked_x, torch.cat((x, x)))
    assert asked_t.tolist() == [500.0] * 6
    assert asked_label.tolist() == [0, 1, 2, NULL, NULL, NULL]
    assert asked_label.dtype == torch.int64


@pytest.mark.parametrize("t", [0.0, 199.9, 800.1, 999.0, 1000.0])
def test_outside_of_the_interval_only_the_conditional_half_is_computed(x: Tensor, t: float):
    network, label = Recorder(), torch.tensor([0, 1, 2])
    out = ask(network, x, label, 3.0, t, 0.2, 0.8)
    assert [len(rows) for rows, _, _ in network.asked] == [3]
    assert torch.equal(out, Recorder()(x, torch.full((3,), t), label))


@pytest.mark.parametrize("t", [200.0, 500.0, 800.0])
def test_inside_of_the_interval_there_is_guidance(x: Tensor, t: float):
    """Its ends belong to it, and it is measured in parts of T."""
    network, label = Recorder(), torch.tensor([0, 1, 2])
    out = ask(network, x, label, 3.0, t, 0.2, 0.8)
    assert [len(rows) for rows, _, _ in network.asked] == [6]
    torch.testing.assert_close(out, expected(x, label, 3.0, t))


def test_the_whole_interval_has_guidance_at_both_ends(x: Tensor):
    for t in (0.0, 1000.0):
        network = Recorder()
        ask(network, x, torch.tensor([0, 1, 2]), 3.0, t)
        assert len(network.asked[0][0]) == 6


def test_a_picture_without_a_class_among_others_is_left_as_it_is(x: Tensor):
    """Both of its halves are the same answer, and the others are guided."""
    label = torch.tensor([0, NULL, 2])
    out = ask(Recorder(), x, label, 7.0)
    torch.testing.assert_close(out, expected(x, label, 7.0, 500.0))
    torch.testing.assert_close(out[1:2], Recorder()(x[1:2], torch.tensor([500.0]), label[1:2]))
