import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowergen.errors import UserError
from flowergen.evaluation import classifier
from flowergen.evaluation.classifier import TrainedClassifier, augment, cached_classifier, one_cycle
from flowergen.nn import classifier as nn_classifier
from flowergen.nn.classifier import Classifier, shrink
from flowergen.randomness import initialisation

NUM, NUM_CLASSES, SIZE = 90, 3, 28
WIDTHS = nn_classifier.WIDTHS


def pictures(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Noise, of which each class has another colour that fades in downwards."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUM, dtype=np.int64) % NUM_CLASSES
    colour = 100 * np.eye(3)[labels][:, :, None, None] * np.linspace(0, 1, size)[:, None]
    return np.clip(rng.normal(100, 50, (NUM, 3, size, size)) + colour, 0, 255).astype(np.uint8), labels


def trained(cache_dir: Path, labels: np.ndarray | None = None, **changed: Any) -> TrainedClassifier:
    images, usual = pictures(changed.pop("size", SIZE))
    arguments: dict[str, Any] = {
        "name": "tiny",
        "images": images,
        "labels": usual if labels is None else labels,
        "train_rows": np.arange(60),
        "held_out_rows": np.arange(60, NUM),
        "num_classes": NUM_CLASSES,
        "identity": "colours",
        "cache_dir": cache_dir,
        "device": "cpu",
    }
    return cached_classifier(**arguments | changed)


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network; six epochs of two steps, a checkpoint after each."""
    monkeypatch.setattr(nn_classifier, "WIDTHS", (8, 16, 32))
    monkeypatch.setattr(classifier, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 30)
    monkeypatch.setattr(classifier, "TRAINING_IMAGES", 360)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The training steps as they are done; ``steps.append`` of a test may raise."""
    done: list[int] = []

    def watched(x: Tensor, step: int) -> Tensor:
        done.append(step)
        return augment(x, step)

    monkeypatch.setattr(classifier, "augment", watched)
    return done


def stop_at(monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    def interrupted(x: Tensor, step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return augment(x, step)

    monkeypatch.setattr(classifier, "augment", interrupted)


def fails_open(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.endswith(".lock")]


# -- what it learns


def test_colours_are_told_apart_on_pictures_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy is that of the network it gives back, on the held-out pictures."""
    monkeypatch.setattr(classifier, "TRAINING_IMAGES", 1800)
    found = trained(tmp_path)
    images, labels = pictures()
    _, logits = found.net(torch.from_numpy(images[60:]).float() / 255)
    accuracy = (logits.argmax(1).numpy() == labels[60:]).mean()
    assert found.accuracy == pytest.approx(accuracy)
    assert found.num_held_out == 30
    assert accuracy > 0.8, "one in three is chance"
    assert not found.net.training
    assert not any(parameter.requires_grad for parameter in found.net.parameters())


def test_equal_pictures_give_equal_weights_whatever_was_drawn_before(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first = trained(tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    np.random.seed(1)
    assert trained(tmp_path / "two").fingerprint == first.fingerprint


def test_unlabelled_pictures_are_neither_trained_on_nor_judged(tmp_path: Path) -> None:
    """Of other pixels, they change nothing but the key's hash of rows, which leaves them out as well."""
    _, labels = pictures()
    some = labels.copy()
    some[50:70] = -1
    found = trained(tmp_path / "some", some)
    few = trained(tmp_path / "few", labels, train_rows=np.arange(50), held_out_rows=np.arange(70, NUM))
    assert found.num_held_out == few.num_held_out == 20
    assert (found.fingerprint, found.accuracy) == (few.fingerprint, few.accuracy)


@pytest.mark.parametrize("labelled", [(), range(60, NUM)])
def test_no_labelled_training_picture_is_said_in_one_line(labelled: range, tmp_path: Path) -> None:
    labels = np.full(NUM, -1)
    labels[list(labelled)] = 0
    with pytest.raises(UserError, match=r"^tiny has no labelled training picture.*class") as error:
        trained(tmp_path, labels)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num", [1, 33])
def test_few_pictures_and_none_held_out_are_enough(num: int, tmp_path: Path, steps: list[int]) -> None:
    """One picture; classes of one picture and of none; 33 pictures make two batches, none of a single picture."""
    found = trained(tmp_path, train_rows=np.arange(num), held_out_rows=np.arange(0))
    assert (math.isnan(found.accuracy), found.num_held_out) == (True, 0)
    assert all(tensor.isfinite().all() for tensor in found.net.state_dict().values())
    assert len(steps) == {1: 30, 33: 22}[num]


def test_sets_of_all_sizes_get_enough_steps_and_not_too_many(
    tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """360 images in 60 pictures are six epochs; never fewer epochs than the fewest, nor more than the most."""
    trained(tmp_path / "1")
    assert steps == list(range(12))
    steps.clear()
    monkeypatch.setattr(classifier, "FEWEST_EPOCHS", 7)
    trained(tmp_path / "2")
    assert steps == list(range(14))
    steps.clear()
    monkeypatch.setattr(classifier, "FEWEST_EPOCHS", 1)
    monkeypatch.setattr(classifier, "MOST_EPOCHS", 3)
    trained(tmp_path / "3")
    assert steps == list(range(6))


def test_every_picture_is_seen_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another order each time."""
    seen: list[list[int]] = []
    images, _ = pictures()
    images[:, 0, 0, 0] = np.arange(NUM)  # a number for each

    def watched(x: Tensor, step: int) -> Tensor:
        seen.append((x[:, 0, 0, 0] * 255).round().int().tolist())
        return augment(x, step)

    monkeypatch.setattr(classifier, "augment", watched)
    trained(tmp_path, images=images)
    epochs = [first + second for first, second in zip(seen[::2], seen[1::2], strict=True)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(60))] * 6
    assert len({tuple(epoch) for epoch in epochs}) == 6


# -- interruptions


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_an_interrupted_training_goes_on_and_ends_bit_equal(
    stop: int, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last whole epoch on; nothing but the cache is left in the end."""
    with monkeypatch.context() as context:
        stop_at(context, stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "interrupted")
    found = trained(tmp_path / "interrupted")
    assert steps == list(range(stop // 2 * 2, 12))
    assert found.fingerprint == trained(tmp_path / "whole").fingerprint
    assert [path.name.startswith("tiny_classifier_") and path.is_dir() for path in fails_open(tmp_path / "interrupted")] == [
        True
    ]


def test_one_interrupted_while_its_accuracy_is_measured_trains_no_more(
    tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(classifier, "count_correct", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(tmp_path)
    assert trained(tmp_path).num_held_out == 30
    assert len(steps) == 12


@pytest.mark.parametrize("damage", ["cut", "other", "text"])
def test_a_damaged_checkpoint_is_left_aside(
    damage: str, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as context:
        stop_at(context, 7)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    (checkpoint,) = tmp_path.glob("*.epoch")
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    elif damage == "text":
        checkpoint.write_text("not a checkpoint")
    else:
        torch.save(torch.load(checkpoint, weights_only=True) | {"key": "another"}, checkpoint)
    found = trained(tmp_path)
    assert "is damaged" in caplog.text
    assert steps == list(range(12))
    assert found.fingerprint == trained(tmp_path / "whole").fingerprint


# -- the cache


def test_it_is_trained_once_for_each_collection_split_and_size(tmp_path: Path, steps: list[int]) -> None:
    def num_steps(**changed: Any) -> int:
        steps.clear()
        trained(tmp_path, **changed)
        return len(steps)

    assert num_steps() == 12
    assert num_steps() == 0
    assert num_steps(identity="other pictures") == 12
    assert num_steps(size=32) == 12
    assert num_steps(num_classes=4) == 12
    assert num_steps(train_rows=np.arange(1, 60)) == 12
    assert num_steps(held_out_rows=np.arange(61, NUM)) == 12
    assert num_steps() == 0
    assert len(list(tmp_path.glob("tiny_classifier_*/"))) == 6


def test_another_recipe_is_another_classifier(tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path)
    monkeypatch.setattr(classifier, "RECIPE_VERSION", -1)
    trained(tmp_path)
    assert len(steps) == 24


@pytest.mark.parametrize("damage", ["no meta", "cut weights", "a bit of the weights", "no number", "another key"])
def test_a_damaged_cache_is_trained_again(
    damage: str, tmp_path: Path, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    weights, meta = folder / "weights.safetensors", folder / "meta.json"
    content, values = weights.read_bytes(), json.loads(meta.read_text())
    if damage == "no meta":
        meta.unlink()
    elif damage == "cut weights":
        weights.write_bytes(content[:-100])
    elif damage == "a bit of the weights":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no number":
        meta.write_text(json.dumps(values | {"num_correct": None}))
    else:
        meta.write_text(json.dumps(values | {"key": "another"}))
    steps.clear()
    with caplog.at_level(logging.WARNING):
        again = trained(tmp_path)
    assert "is damaged" in caplog.text
    assert len(steps) == 12
    assert (again.fingerprint, again.accuracy) == (whole.fingerprint, whole.accuracy)


def test_the_classifier_out_of_the_cache_is_the_one_that_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits, bit for bit, statistics of the normalisation included."""
    nets: list[Classifier] = []

    def watched(*arguments: Any) -> int:
        nets.append(arguments[0])
        return 0

    monkeypatch.setattr(classifier, "count_correct", watched)
    found = trained(tmp_path)
    x = torch.rand(4, 3, SIZE, SIZE)
    for mine, cached in zip(nets[0](x), found.net(x), strict=True):
        assert torch.equal(mine, cached)


# -- the network


@pytest.fixture
def net(little_work: None, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """Of full width, with statistics that are not those of the start."""
    monkeypatch.setattr(nn_classifier, "WIDTHS", WIDTHS)
    with initialisation(0):
        net = Classifier(5)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
    return net.eval()


@pytest.mark.parametrize("size", [28, 33, 64, 100, 256])
@torch.inference_mode()
def test_pictures_of_all_sizes_give_features_and_logits(size: int, net: Classifier) -> None:
    features, logits = net(torch.rand(2, 3, size, size))
    assert (features.shape, logits.shape) == ((2, 256), (2, 5))
    assert features.isfinite().all()
    assert (features >= 0).all()
    torch.testing.assert_close(net.to_logits(features), logits)


@torch.inference_mode()
def test_a_sample_is_judged_alike_in_batches_of_all_sizes(net: Classifier) -> None:
    x = torch.rand(7, 3, 40, 40)
    together = net(x)
    for alone in (tuple(torch.cat(parts) for parts in zip(*map(net, x.split(num)), strict=True)) for num in (1, 3)):
        torch.testing.assert_close(alone, tuple(together), rtol=1e-4, atol=1e-5)


def test_large_pictures_are_shrunk_without_aliasing() -> None:
    """Fine stripes become their mean; small pictures stay as they are."""
    small = torch.rand(1, 3, 64, 64)
    assert shrink(small) is small
    stripes = (torch.arange(256) % 4 == 0).float().expand(1, 3, 256, 256)
    inside = shrink(stripes)[..., 1:-1]
    assert inside.shape == (1, 3, 64, 62)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.25))


# -- the recipe


def test_the_learning_rate_rises_once_and_falls_to_zero() -> None:
    """Linear rise to 1, half-way down at the middle of the fall."""
    warm_up = classifier.WARM_UP
    assert one_cycle(0) == 0
    assert one_cycle(warm_up / 2) == pytest.approx(0.5)
    assert one_cycle(warm_up) == 1
    assert one_cycle((1 + warm_up) / 2) == pytest.approx(0.5)
    assert one_cycle(1) == pytest.approx(0)


def test_training_sees_random_parts_of_the_pictures_half_of_them_mirrored() -> None:
    """Of pictures whose values are the positions, cropped ones tell what they show: both sides, the area and the place."""
    num, size = 400, 40
    ramp = ((torch.arange(size) + 0.5) / size).expand(size, size)
    crops = augment(torch.stack([ramp, ramp.T, ramp]).expand(num, 3, size, size), step=3)
    assert crops.shape == (num, 3, 30, 30)
    right, down = crops[:, 0], crops[:, 1]
    torch.testing.assert_close(right, right[:, :1].expand_as(right), msg="columns stay columns")
    torch.testing.assert_close(down, down[:, :, :1].expand_as(down), msg="rows stay rows")
    slope = (right[:, 0, 20] - right[:, 0, 10]) / 10 * 30  # in the middle: the edge is repeated outwards
    width, height = slope.abs(), (down[:, 20, 0] - down[:, 10, 0]) / 10 * 30
    assert 0.4 < (slope < 0).float().mean() < 0.6, "mirrored"
    for side, middle in ((width, right[:, 0, 14:16].mean(1)), (height, down[:, 14:16, 0].mean(1))):
        assert (middle - side / 2 > -1e-4).all()
        assert (middle + side / 2 < 1 + 1e-4).all()
        place = ((middle - side / 2) / (1 - side))[side < 0.9]
        assert place.min() < 0.1, "all places"
        assert place.max() > 0.9
    area, aspect = width * height, width / height
    assert 0.3 < area.min() < 0.4 < 0.9 < area.max() < 1 + 1e-4
    assert 0.7 < aspect.min() < 0.8 < 1.25 < aspect.max() < 1.4


def test_the_parts_are_functions_of_the_step() -> None:
    x = torch.rand(6, 3, 32, 32)
    assert torch.equal(augment(x, 5), augment(x, 5))
    assert not torch.equal(augment(x, 5), augment(x, 6))
    assert 0 <= augment(x, 5).min() <= augment(x, 5).max() <= 1
