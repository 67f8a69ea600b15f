import torch

from flowergen.modules.running_means import RunningMeans


def batches() -> list[dict[str, torch.Tensor]]:
    noise = torch.Generator().manual_seed(0)
    return [{"loss": torch.randn(n, generator=noise), "sigma": torch.tensor(float(n))} for n in (5, 3, 4)]


def test_means_are_over_pictures_and_not_over_batches() -> None:
    means = RunningMeans()
    for batch in batches():
        means.update(batch)
    loss = torch.cat([batch["loss"] for batch in batches()]).double().mean().item()
    assert abs(means.compute()["loss"] - loss) < 1e-12
    assert abs(means.compute()["sigma"] - (25 + 9 + 16) / 12) < 1e-12


def test_means_go_on_to_the_bit_from_their_state() -> None:
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    first.update(batches()[0])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for batch in batches()[1:]:
        second.update(batch)
    for batch in batches():
        whole.update(batch)
    assert second.compute() == whole.compute()


def test_the_first_of_fewer_processes_takes_the_sums_of_all() -> None:
    rows = []
    for batch in batches()[:2]:
        one = RunningMeans()
        one.update(batch)
        rows += one.state_dict()
    merged = RunningMeans()
    merged.load_state_dict(rows, torch.device("cpu"))
    assert abs(merged.compute()["sigma"] - (25 + 9) / 8) < 1e-12


def test_a_value_that_comes_later_is_added_up_from_then_on() -> None:
    means = RunningMeans()
    means.update({"loss": torch.tensor([1.0, 3.0])})
    means.update({"late": torch.tensor([8.0, 8.0]), "loss": torch.tensor([5.0, 7.0])})
    means.update({"loss": torch.tensor([4.0, 4.0])})
    assert means.compute() == {"loss": 24 / 6, "late": 16 / 6}


def test_sums_that_were_loaded_before_the_model_is_on_its_device_follow_it_there() -> None:
    """The device is torch's meta device, whose tensors cannot be added to those of the CPU."""
    first, second = RunningMeans(), RunningMeans()
    first.update(batches()[0])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    second.update({name: value.to("meta") for name, value in batches()[1].items()})
    second.update({name: value.to("meta") for name, value in batches()[2].items()})
    assert second._sums.is_meta


def test_nothing_seen_is_no_mean() -> None:
    assert RunningMeans().compute() == {}
