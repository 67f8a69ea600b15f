"""What the evaluation during training makes of its figures: on figures that are given, and in runs of a few steps."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowergen.app.train_command import checked
from flowergen.callbacks import evaluation
from flowergen.callbacks.evaluation import PeriodicEvaluation, held_out_loss
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.evaluation.networks import EvaluationNetworks
from flowergen.evaluation.pictures import MIN_PICTURES, RealPictures, real_pictures_of
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.evaluation import fakes
from tests.tiny_models import drawn

NUM = 100


def callback(tmp_path: Path, metric: str = "fid", extractor: str = "efficientnet", num: int = NUM) -> PeriodicEvaluation:
    made = PeriodicEvaluation(tmp_path, 1, num, extractor, "", metric)
    made.prepared = SimpleNamespace(real=SimpleNamespace(reference=range(NUM)))  # type: ignore[assignment]
    made.prefix = "eval"
    return made


def look(made: PeriodicEvaluation, loss: float | None, copies: int, **figures: float) -> list[str]:
    """One evaluation; the checkpoints that it wants kept."""
    values = {made._name(name): value for name, value in figures.items()}
    values |= {"eval/copies_pixels_calibrated": copies / NUM, "eval/copies_pixels_calibrated_held_out": 0.01}
    made.checkpoint_names = []
    made._add(made.history[-1]["epoch"] + 1 if made.history else 1, loss, values)
    return made.checkpoint_names


def test_a_model_that_copies_while_its_held_out_loss_rises_is_marked(tmp_path: Path) -> None:
    """From the first of two such evaluations in a row; before_memorising.ckpt stays that of the lowest loss without copies."""
    made, before = callback(tmp_path), ["before_memorising.ckpt"]
    assert look(made, 3.0, 0) == before
    assert look(made, 2.0, 2) == before
    assert look(made, 1.9, 40) == [], "the lowest loss, but with copies"
    assert look(made, 2.5, 50) == []
    assert made.memorising is None
    assert look(made, 2.6, 60) == []
    assert made.memorising == 4
    assert look(made, 1.0, 0) == [], "never again"


def test_a_rising_loss_or_copies_alone_are_no_memorising(tmp_path: Path) -> None:
    rising, copying = callback(tmp_path), callback(tmp_path)
    for epoch in range(4):
        look(rising, 1.0 + epoch, 1)
        look(copying, 4.0 - epoch, 50)
    assert rising.memorising is copying.memorising is None


@pytest.mark.parametrize(("metric", "values"), [("fid", (5.0, 4.0, 4.0, 6.0)), ("recall", (0.1, 0.2, 0.2, 0.05))])
def test_the_best_checkpoint_is_that_of_the_best_figure(tmp_path: Path, metric: str, values: tuple[float, ...]) -> None:
    """The lowest distance, the highest recall; of equal ones the first; where it was is in the checkpoint."""
    made = callback(tmp_path, metric)
    kept = [f"best_{metric}.ckpt" in look(made, 1.0, 0, **{metric: value}) for value in values]
    assert kept == [True, True, False, False]
    resumed = callback(tmp_path, metric)
    resumed.load_state_dict(made.state_dict())
    assert f"best_{metric}.ckpt" not in look(resumed, 1.0, 0, **{metric: values[0]})
    assert len(resumed.history) == 5


def test_without_held_out_pictures_nothing_is_called_memorising(tmp_path: Path) -> None:
    made = callback(tmp_path)
    for epoch, loss in enumerate((1.0, 2.0, 3.0, 4.0), 1):
        made._add(epoch, loss, {"eval/copies_pixels_third": 1.0})
    assert made.checkpoint_names == []
    assert made.memorising is None


def test_looks_without_a_validation_are_left_out_of_what_is_said_of_memorising(tmp_path: Path) -> None:
    """They are in the history, and may be the best by their figures; they are neither the lowest loss nor in between."""
    made, before = callback(tmp_path), ["before_memorising.ckpt"]
    assert look(made, None, 0) == []
    assert look(made, 2.0, 0, fid=5.0) == ["best_fid.ckpt", *before]
    assert look(made, None, 50, fid=4.0) == ["best_fid.ckpt"]
    assert look(made, 2.5, 50) == []
    assert look(made, None, 0) == []
    assert made.memorising is None
    assert look(made, 2.6, 50) == []
    assert made.memorising == 4
    assert [entry["loss"] for entry in made.history] == [None, 2.0, None, 2.5, None, 2.6]


def test_a_look_is_of_the_space_with_more_copies_over_its_own_control(tmp_path: Path) -> None:
    """Numbers of that look: samples as they were then, of whatever the control were."""
    made = callback(tmp_path)
    made.prepared = SimpleNamespace(real=SimpleNamespace(reference=range(40)))  # type: ignore[assignment]
    values = {"copies_pixels_calibrated": 0.5, "copies_pixels_calibrated_held_out": 0.4,
              "copies_features_calibrated": 0.3, "copies_features_calibrated_held_out": 0.05}  # fmt: skip
    made._add(7, 1.5, {f"eval/{name}": value for name, value in values.items()})
    assert made._evaluation(made.history[0]) == (7, 1.5, 30, NUM, 2, 40)


def test_what_other_settings_have_found_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Distances in other features, or of another number of samples, are not compared with."""
    made = callback(tmp_path)
    for loss, copies in ((1.0, 0), (2.0, 50), (3.0, 50)):
        look(made, loss, copies, fid=1.0)
    assert made.memorising == 2
    caplog.set_level(logging.INFO)
    same = callback(tmp_path)
    same.load_state_dict(made.state_dict())
    assert (same.history, same.best, same.memorising) == (made.history, 1.0, 2)
    assert caplog.messages == []
    for other in (callback(tmp_path, extractor="inception"), callback(tmp_path, num=50)):
        other.load_state_dict(made.state_dict())
        assert (other.history, other.best, other.memorising) == ([], None, None)
        assert caplog.messages == ["evaluation: its settings have changed, so its history starts over"]
        caplog.clear()
        assert look(other, 9.0, 0, fid=9.0) == ["best_fid.ckpt", "before_memorising.ckpt"]


def test_the_best_by_another_metric_is_forgotten_and_the_history_is_not(tmp_path: Path) -> None:
    made = callback(tmp_path, "fid")
    look(made, 1.0, 0, fid=0.5, recall=0.1)
    other = callback(tmp_path, "recall")
    other.load_state_dict(made.state_dict())
    assert (len(other.history), other.best) == (1, None)
    assert look(other, 2.0, 0, fid=0.4, recall=0.2) == ["best_recall.ckpt"], "the loss of the first look was lower"


@pytest.mark.parametrize(
    ("extractor", "name"),
    [
        ("inception", "eval/fid"),
        ("efficientnet", "eval/fid_efficientnet"),
        ("torchvision:resnet50", "eval/fid_resnet50"),
        ("/some/where/my net.pt2", "eval/fid_my net"),
    ],
)
def test_only_inceptions_features_are_logged_as_an_fid(tmp_path: Path, extractor: str, name: str) -> None:
    made = callback(tmp_path, extractor=extractor)
    assert made._name("fid") == name
    assert made._name("kid") == name.replace("fid", "kid")
    for metric in ("precision", "recall", "class_accuracy", "copies_features_third"):
        assert made._name(metric) == f"eval/{metric}"
    assert look(made, 1.0, 0, fid=1.0) == ["best_fid.ckpt", "before_memorising.ckpt"]
    made.prefix = "trainset_eval"
    assert made._name("fid") == f"trainset_{name}"


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_the_held_out_loss_is_that_of_this_epochs_validation(mode: str, sign: int) -> None:
    """Lower is better; an older epoch's, one that nobody has measured, and what is no number are none."""
    module: Any = SimpleNamespace(best_metric="score", best_mode=mode, eligible_as_best=True)

    def trainer(epoch: int, every: int | None, **metrics: float) -> Any:
        found = {f"val/{name}": torch.tensor(value) for name, value in metrics.items()}
        return SimpleNamespace(current_epoch=epoch - 1, check_val_every_n_epoch=every, callback_metrics=found)

    for epoch, every in ((1, 1), (2, 1), (2, 2), (6, 3), (3, None)):
        assert held_out_loss(trainer(epoch, every, score=0.25, other=9), module) == sign * 0.25
    for epoch, every in ((1, 2), (3, 2), (4, 3)):
        assert held_out_loss(trainer(epoch, every, score=0.25), module) is None
    assert held_out_loss(trainer(1, 1, other=9), module) is None
    for value in (float("nan"), float("inf"), -float("inf")):
        assert held_out_loss(trainer(1, 1, score=value), module) is None
    module.eligible_as_best = False  # before a VAE-GAN's full adversarial weight
    assert held_out_loss(trainer(1, 1, score=0.25), module) is None


# -- in a run


@pytest.fixture
def fake_networks(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that cost nothing, in the name of Inception's."""

    def load(name: str, real: RealPictures, *_: Any) -> EvaluationNetworks:
        return fakes.networks(tmp_path / "features", fakes.extractor(name="inception"))

    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    monkeypatch.setattr(evaluation, "load_evaluation_networks", load)
    monkeypatch.setattr(evaluation, "plot_evaluations", lambda *_: None)  # tests of its own


def fit(run: Path, overrides: tuple[str, ...], resumed_from: Path | None = None) -> PeriodicEvaluation:
    """Train in this process; the callback afterwards."""
    small = ("trainer.limit_train_batches=2", "callbacks.images.every_epochs=9")
    evaluations = ("every_epochs=1", "num_samples=8", "extractor=inception")
    config = resolve(checked([*overrides, *small, *(f"callbacks.evaluation.{look}" for look in evaluations)])[0])
    data = build_datamodule(config)
    data.setup()
    trainer = build_trainer(config, RunFolder(run), None)
    trainer.fit(build_module(config, num_classes=len(data.class_names)), datamodule=data, ckpt_path=resumed_from)
    (found,) = (one for one in trainer.callbacks if isinstance(one, PeriodicEvaluation))  # type: ignore[attr-defined]
    return found


def test_only_looks_with_a_validation_of_their_own_have_a_held_out_loss(
    fake_networks: None, tiny_run: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of every second epoch; the first after a resume has not that of the last before. It is said which these are."""
    caplog.set_level(logging.INFO)
    overrides = (*tiny_run, "trainer.check_val_every_n_epoch=2")
    fit(tmp_path, (*overrides, "trainer.max_epochs=2"))
    found = fit(tmp_path, (*overrides, "trainer.max_epochs=4"), tmp_path / "checkpoints" / "last.ckpt")
    assert [entry["epoch"] for entry in found.history] == [1, 2, 3, 4]
    assert [entry["loss"] is None for entry in found.history] == [True, False, True, False]
    assert all(entry["values"]["eval/fid"] > 0 for entry in found.history)
    assert [entry["num"] for entry in found.history] == [8] * 4
    assert [entry["num_control"] for entry in found.history] == [4] * 4
    (note,) = {message for message in caplog.messages if "memorising is detected only" in message}
    assert "every 2" in note
    evaluations = [found._evaluation(entry) for entry in found.history]
    assert [each.epoch for each in evaluations if each] == [2, 4]


def test_an_evaluation_that_fails_is_logged_and_training_goes_on(
    fake_networks: None,
    tiny_run: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In training mode; the next look is measured, and no checkpoint of an earlier one is named again."""
    measure, modes, calls = evaluation.measure_samples, list[bool](), list[int]()

    def failing(generated: Any, *arguments: Any) -> None:
        assert "fitted to 64 training latents" in generated.sampler.description, "as the pictures are while training"
        calls.append(len(calls))
        modes.append(generated.sampler.model.training)
        measure(generated, *arguments)
        if len(calls) == 2:
            raise UserError("the disk is full")

    add = PeriodicEvaluation.on_train_epoch_end

    def watched(self: PeriodicEvaluation, trainer: Any, pl_module: Any) -> None:
        add(self, trainer, pl_module)
        modes.append(pl_module.training)
        if len(calls) == 2:
            assert self.checkpoint_names == []

    monkeypatch.setattr(evaluation, "measure_samples", failing)
    monkeypatch.setattr(PeriodicEvaluation, "on_train_epoch_end", watched)
    found = fit(tmp_path, (*tiny_run, "trainer.max_epochs=3"))
    assert [entry["epoch"] for entry in found.history] == [1, 3]
    assert "evaluation of epoch 2 failed: the disk is full" in caplog.messages
    assert modes == [False, True] * 3


def test_a_run_that_holds_nothing_out_logs_training_set_metrics_and_says_so(
    fake_networks: None, tiny_run: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = fit(tmp_path, (*tiny_run, "data.split=all", "trainer.max_epochs=1"))
    (entry,) = found.history
    assert entry["loss"] is None
    assert {name.partition("/")[0] for name in entry["values"]} == {"trainset_eval"}
    assert not any("copies" in name and "calibrated" in name for name in entry["values"])
    assert "evaluation: training-set metric: nothing was held out (data.split=all)" in caplog.messages
    assert found.memorising is None


def test_too_few_validation_pictures_are_named_before_training(cache_dir: Path) -> None:
    """Half of them are the reference, which needs four."""
    assert len(real_pictures_of(drawn(cache_dir, num_images=80), 16, "val").reference) == MIN_PICTURES
    with pytest.raises(UserError, match=r"^2 validation pictures are too few to evaluate with: give at least 4"):
        real_pictures_of(drawn(cache_dir, num_images=40), 16, "val")
