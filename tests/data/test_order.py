import numpy as np
import pytest

from flowergen.data.order import SequentialOrder, TrainingOrder

ROWS = np.arange(100, 153)


def test_an_epoch_shows_every_picture_at_most_once_and_leaves_out_less_than_a_batch() -> None:
    seen = [row for batch in TrainingOrder(ROWS, 8, seed=0) for row in batch]
    assert len(seen) == 48
    assert len(set(seen)) == 48
    assert set(seen) <= set(ROWS.tolist())


def test_epochs_and_seeds_have_orders_of_their_own_and_the_same_one_again() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TrainingOrder(ROWS, 8, seed)
        sampler.set_epoch(epoch)
        return [list(batch) for batch in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_devices_and_accumulation_cut_the_same_batches_in_the_same_order(world_size: int, accumulate: int) -> None:
    whole = [list(batch) for batch in TrainingOrder(ROWS, 8, 0)]
    parts = [list(TrainingOrder(ROWS, 8, 0, rank, world_size, accumulate)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        joined = [row for micro in range(accumulate) for part in parts for row in part[step * accumulate + micro]]
        assert joined == batch


def test_a_resumed_epoch_yields_the_rest_and_the_next_one_is_whole_again() -> None:
    order = TrainingOrder(ROWS, 8, 0)
    order.set_epoch(3)
    whole = list(order)
    resumed = TrainingOrder(ROWS, 8, 0)
    resumed.resume_at(3, 4)
    resumed.set_epoch(3)  # as Lightning does
    assert list(resumed) == whole[4:]
    assert len(resumed) == len(whole), "Lightning runs half an epoch where the length is the rest's"
    resumed.set_epoch(4)
    assert len(list(resumed)) == len(whole)


@pytest.mark.parametrize("num", [1, 7, 8, 9, 17, 53])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_shows_every_picture_once_in_equally_many_batches_a_process(num: int, world_size: int) -> None:
    parts = [list(SequentialOrder(np.arange(num), 8, rank, world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(row for part in parts for batch in part for row in batch) == list(range(num))
    if num >= world_size:
        assert all(batch for part in parts for batch in part), "an empty batch"
