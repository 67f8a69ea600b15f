"""A collection on the device: the batches are those of the memory map."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowergen.data import resident
from flowergen.data.batch import Batch, LatentBatch
from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.errors import UserError
from flowergen.randomness import normal
from tests.data.test_image_datamodule import drawn

CPU = torch.device("cpu")


def prepared(cache_dir: Path, device: torch.device = CPU, **changes: Any) -> ProceduralDataModule:
    """A data module with as much of a trainer as its loaders and batches ask for."""
    data = drawn(cache_dir, **changes)
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=True,
        current_epoch=0,
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        lightning_module=SimpleNamespace(accumulation_steps=1, compares_with_training=True),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(root_device=device),
    )
    return data


def use_latents(data: ProceduralDataModule) -> None:
    data.use_latents(*(normal((100, 2, 3, 4, 4), seed=0, step=0, purpose=name).numpy() for name in ("mean", "logvar")))


def batches(data: ProceduralDataModule, device: torch.device = CPU) -> list[Any]:
    """All of an epoch, and of both validation loaders, on the device."""
    found = []
    for training, loaders in ((True, [data.train_dataloader()]), (False, data.val_dataloader())):
        data.trainer.training = training  # type: ignore[union-attr,misc]
        for loader in loaders:
            for batch in loader:
                found.append(data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0))
    return found


def assert_same(ours: list[Any], theirs: list[Any], atol: float = 0) -> None:
    assert len(ours) == len(theirs) > 20
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu(), rtol=0, atol=atol)


AUGMENTED = {"color_jitter": 0.5, "random_resized_crop": [0.5, 1.0]}


@pytest.mark.parametrize("what", [Batch, LatentBatch])
def test_batches_are_bit_equal(cache_dir: Path, what: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of training and of both validation loaders, flips and other augmentations included; copied in several pieces."""
    monkeypatch.setattr(resident, "CHUNK_SIZE", 33)
    ours, theirs = (prepared(cache_dir, device_resident=choice, **AUGMENTED) for choice in (True, False))
    if what is LatentBatch:
        use_latents(ours)
        use_latents(theirs)
    assert isinstance(next(iter(ours.train_dataloader())), torch.Tensor)
    assert isinstance(next(iter(theirs.train_dataloader())), what)
    assert_same(batches(ours), batches(theirs))


def test_latents_replace_the_pictures_on_the_device(cache_dir: Path) -> None:
    data = prepared(cache_dir, device_resident=True)
    assert isinstance(batches(data)[0], Batch)
    use_latents(data)
    assert isinstance(batches(data)[0], LatentBatch)


def test_cached_latents_may_lie_there_where_pictures_are_streamed(tmp_path: Path) -> None:
    data = prepared(tmp_path, decode="stream", device_resident=True)
    assert isinstance(next(iter(data.train_dataloader())), Batch), "pictures may not"
    use_latents(data)
    assert isinstance(next(iter(data.train_dataloader())), torch.Tensor)


def test_auto_leaves_a_cpu_its_memory_map(cache_dir: Path) -> None:
    assert isinstance(next(iter(prepared(cache_dir).train_dataloader())), Batch)


@pytest.mark.parametrize(("free", "is_copied"), [(3 * 78400, True), (3 * 78400 - 3, False)])
def test_auto_takes_a_third_of_what_is_free_on_a_gpu(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, is_copied: bool
) -> None:
    """100 pictures of 16 px are 76,800 bytes, their labels and row numbers 1,600; said once for all loaders."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    copy = resident.copy_to_device
    monkeypatch.setattr("flowergen.data.image_datamodule.copy_to_device", lambda source, device: copy(source, CPU))
    caplog.set_level("INFO")
    data = prepared(cache_dir, torch.device("cuda", 0))
    assert isinstance(next(iter(data.train_dataloader())), torch.Tensor if is_copied else Batch)
    data.val_dataloader()
    (line,) = [record.message for record in caplog.records if "78,400 bytes" in record.message]
    assert ("is stored on cuda:0" in line) == is_copied


def test_a_device_without_room_says_what_to_do(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flowergen.data.image_datamodule.copy_to_device", full)
    with pytest.raises(UserError, match=r"no room for the collection's 78,400 bytes: set data\.device_resident=false"):
        prepared(cache_dir, device_resident=True).train_dataloader()


def test_the_memory_is_given_back_at_the_end(cache_dir: Path) -> None:
    data = prepared(cache_dir, device_resident=True)
    data.train_dataloader()
    assert data._whole is not None
    data.teardown("fit")
    assert data._whole is None
    assert isinstance(data.pictures[[0]].image, torch.Tensor), "pictures to look at are there still"


def test_crops_and_colours_belong_to_the_picture_and_the_epoch_and_not_to_the_batch(cache_dir: Path) -> None:
    """And to training alone; and each of them acts."""
    for choice in ({"color_jitter": 0.5}, {"random_resized_crop": [0.5, 1.0]}):
        data = prepared(cache_dir, horizontal_flip=False, **choice)

        def at(rows: list[int], data: ProceduralDataModule = data) -> torch.Tensor:
            found = data.on_after_batch_transfer(data.pictures[rows], 0)
            assert isinstance(found, Batch)
            return found.image

        whole, plain = at(list(range(50))), data.pictures[list(range(50))].image.float() / 255
        torch.testing.assert_close(at([7, 3]), whole[[7, 3]], rtol=0, atol=1e-6)
        assert ((whole - plain).abs().amax((1, 2, 3)) > 0.02).float().mean() > 0.9
        data.trainer.current_epoch = 1  # type: ignore[union-attr,misc]
        assert not torch.equal(at(list(range(50))), whole)
        data.trainer.training = False  # type: ignore[union-attr,misc]
        torch.testing.assert_close(at(list(range(50))), plain, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: copies on a stream of their own are NOT TESTED here")
@pytest.mark.parametrize("choice", ["auto", False])
def test_on_a_gpu_the_batches_are_those_of_the_cpu(cache_dir: Path, choice: Any) -> None:
    device = torch.device("cuda", 0)
    theirs: Callable[..., ProceduralDataModule] = prepared
    ours = prepared(cache_dir, device, device_resident=choice)
    found = []
    for batch in batches(ours, device):
        torch.cuda._sleep(1_000_000)  # the model is busy, so that a copy that nobody waited for would be seen
        found.append(batch)
    one_rounding = 6e-8  # CUDA divides by 255 by multiplying with its reciprocal: half of the values differ in their last bit
    assert_same(found, batches(theirs(cache_dir, device_resident=False)), atol=one_rounding)
    assert np.isfinite(found[0].image.cpu().numpy()).all()
