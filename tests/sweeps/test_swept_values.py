import pytest

from flowergen.errors import UserError
from flowergen.sweeps.swept_values import sweep_samples


def test_a_sweep_shows_every_value_once() -> None:
    samples = sweep_samples(["model.beta=1,2,3", "seed=0,1", "name=x"])
    assert len(samples) == 1 + 2 + 1
    assert {line for sample in samples for line in sample} == {
        "model.beta=1", "model.beta=2", "model.beta=3", "seed=0", "seed=1", "name=x",
    }  # fmt: skip


def test_a_sweep_over_sizes_may_have_pairs() -> None:
    assert sweep_samples(["data.image_size=64,[48,64]"]) == [["data.image_size=64"], ["data.image_size=[48,64]"]]


@pytest.mark.parametrize("values", ["range(0,1000000000000)", "1," * 1001 + "1"])
def test_a_sweep_without_end_is_refused(values: str) -> None:
    with pytest.raises(UserError, match="more than 1,000 values"):
        sweep_samples([f"seed={values}"])
