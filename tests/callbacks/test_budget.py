"""A clock that the tests turn: nothing here depends on how fast the machine is."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback

from flowergen.app.train_command import checked
from flowergen.callbacks import budget, end_timing, images
from flowergen.callbacks.budget import Budget
from flowergen.callbacks.budget_plan import Durations, EndDurations, Plan, Position, Seconds, plan, seconds_spent
from flowergen.callbacks.images import ImageGrids
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.evaluation import latent_store
from flowergen.modules.image_model import ImageModel
from flowergen.modules.vae import VAEModule
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.loading import epochs_done, read_checkpoint
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.trainer import build_trainer
from tests.conftest import TINY_RUN, TINY_VAE_GAN

ENCODING = 0.002  # seconds a picture
SECONDS = Seconds(step=0.1, validation=2.0, epoch_end=0.5, pictures=1.0, storing=3.0)


def test_less_than_an_epoch_is_what_the_end_of_the_run_leaves() -> None:
    """30 s - (2 + 0.5 + 1 + 3) s are 235 steps of 0.1 s."""
    at = Position(steps=0, epoch=0, to_epoch_end=400, steps_per_epoch=400, validates_every=1, draws_every=5)
    assert plan(at, SECONDS, 30.0001, budget=30.0)[:3] == (235, 1, True)


def test_whole_epochs_pay_for_what_comes_after_each() -> None:
    """After 50 steps and 2.5 s there remain 46 s: 3 epochs of 10 + 2.5 + 1/5 s, and 79 steps of another."""
    at = Position(steps=0, epoch=0, to_epoch_end=50, steps_per_epoch=100, validates_every=1, draws_every=5)
    assert plan(at, SECONDS, 60.0001, budget=30.0)[:3] == (50 + 300 + 79, 5, True)


def test_no_time_is_the_end_here() -> None:
    at = Position(steps=7, epoch=2, to_epoch_end=50, steps_per_epoch=100, validates_every=1, draws_every=5)
    assert plan(at, SECONDS, 3.0, budget=30.0)[:3] == (7, 3, True)


def test_no_epoch_is_begun_for_next_to_nothing() -> None:
    """Another epoch's end takes 0.5 s: of 1.05 s, 0.55 remain, of 1.15 s 0.65, which is worth it; or a step of 0.8 s is not."""
    at = Position(steps=100, epoch=0, to_epoch_end=0, steps_per_epoch=100, validates_every=1, draws_every=5)
    assert plan(at, SECONDS, 6.5 + 1.05, budget=30.0)[:3] == (100, 1, True)
    assert plan(at, SECONDS, 6.5 + 1.15, budget=30.0)[:3] == (106, 2, False)
    assert plan(at, SECONDS._replace(step=0.8), 6.5 + 1.15, budget=30.0)[:3] == (100, 1, True)


def test_epochs_that_fit_exactly_are_not_followed_by_an_empty_one() -> None:
    """Two epochs of 12.7 s, and less than a step more."""
    at = Position(steps=100, epoch=0, to_epoch_end=0, steps_per_epoch=100, validates_every=1, draws_every=5)
    assert plan(at, SECONDS, 6.5 + 2.5 + 2 * 12.7 + 0.05, budget=30.0)[:3] == (300, 3, True)


def test_a_plan_is_renewed_after_a_50th_of_the_budget_and_more_often_close_to_the_end() -> None:
    """2 s of 100 s are 20 steps; of the last 30 steps every third, and of the last five each."""
    at = Position(steps=7, epoch=0, to_epoch_end=5000, steps_per_epoch=5000, validates_every=0, draws_every=0)
    for remaining, steps in ((100.05, 20), (3.05, 3), (0.55, 1)):
        assert plan(at, Seconds(0.1, 0.0, 0.0, 0.0, 0.0), remaining, budget=100.0).next_plan == 7 + steps


def life(budget: float, an_epoch: int, seconds: Seconds, validates_every: int, draws_every: int) -> float:
    """When a run ends whose plan is followed to the letter, and whose seconds are exact."""
    now, steps = 0.0, 0
    for epoch in range(1000):
        for step in range(an_epoch):
            now, steps = now + seconds.step, steps + 1
            at = Position(steps, epoch, an_epoch - step - 1, an_epoch, validates_every, draws_every)
            made = plan(at, seconds, budget - now, budget)
            if made.total_steps <= steps:
                assert made.num_epochs == epoch + 1
                return now + seconds.validation + seconds.epoch_end + seconds.pictures + seconds.storing
        assert made.num_epochs > epoch + 1
        validates, draws = (every and (epoch + 1) % every == 0 and made.evaluates for every in (validates_every, draws_every))
        now += seconds.epoch_end + (seconds.validation if validates else 0) + (seconds.pictures if draws else 0)
    raise AssertionError


@pytest.mark.parametrize("budget", [30.0, 61.0, 600.0])
def test_a_followed_plan_ends_in_the_last_twentieth_of_the_budget(budget: float) -> None:
    """Whatever an epoch's length, and never late; steps of 2 s cannot be cut."""
    for an_epoch, every, draws in itertools.product((3, 17, 80, 155, 233, 5000), (0, 1, 6), (0, 1, 9)):
        end = life(budget, an_epoch, SECONDS, every, draws)
        assert 0.95 * budget <= end <= budget + 1e-6, (an_epoch, every, draws)
        end = life(budget, an_epoch, SECONDS._replace(step=2.0), every, draws)
        assert 0.95 * budget - 2 <= end <= budget + 1e-6, (an_epoch, every, draws)


@pytest.mark.parametrize(("slow_steps", "expected"), [(1, [9.0, 4.0, 2.5]), (2, [9.0, 4.0, 1.0])])
def test_slow_steps_are_not_measured_once_there_is_another(slow_steps: int, expected: list[float]) -> None:
    """Steps of 9, 4 and 1 s."""
    durations = Durations(slow_steps)
    durations.step_began, seconds = 0.0, []
    for now in (9.0, 13.0, 14.0):
        durations.step_done(now)
        seconds.append(durations.seconds(validates=False).step)
    assert seconds == expected


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ageing(Callback):
    """What everything takes, on that clock; a step takes ``later`` times as long from the given second on."""

    def __init__(self, clock: Clock, later: float = 1.0, from_second: float = math.inf):
        self.clock, self.later, self.from_second = clock, later, from_second
        self.rates: list[float] = []
        self.horizons: list[int] = []
        self.validated: list[int] = []  # epochs

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.now += 0.4 * (self.later if self.clock.now > self.from_second else 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.horizons.append(pl_module.total_steps)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.clock.now += 0.3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Clock:
    """Validation takes 0.5 s a batch, samples 0.05 s each, encoding 0.002 s each, a fit what the file's constants say."""
    monkeypatch.setenv("FLOWERGEN_CACHE_DIR", str(cache_dir))
    turned = Clock()

    def slowed(owner: Any, name: str, seconds: Any) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            turned.now += seconds(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)

    slowed(VAEModule, "validation_step", lambda *args: 0.5)
    slowed(VAEModule, "encode", lambda module, x: ENCODING * len(x))
    slowed(latent_store, "fit_latent_prior", lambda z, *args: 1.0 + 3e-4 * len(z))
    for owner in (end_timing, images):
        slowed(owner, "first_samples", lambda sampler, num: 0.05 * num)
    return turned


def train(
    run: Path, clock: Clock, seconds: float, *overrides: str, ageing: Ageing | None = None, resume: Path | None = None
) -> tuple[ImageModel, Any, Ageing]:
    """Returns the model, the trainer and what was seen."""
    quiet = ("logger=none", "callbacks.loss_plot=null", "callbacks.hparams=null")
    config = resolve(checked([*TINY_RUN, *quiet, "trainer.budget=1h", "model.lr_schedule=cosine", *overrides])[0])
    data = build_datamodule(config)
    data.setup()
    module = build_module(config, len(data.class_names))
    trainer = build_trainer(config, RunFolder(run), read_checkpoint(resume) if resume else None)
    (own,) = (callback for callback in trainer.callbacks if isinstance(callback, Budget))
    own.seconds, own.clock, own.started = seconds, clock, clock()
    seen = ageing or Ageing(clock)
    trainer.callbacks.append(seen)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module, trainer, seen


STORING = 1.0 + 64 * (3e-4 + ENCODING)  # of 64 pictures, by the constants of the file


@pytest.mark.parametrize(
    ("seconds", "overrides"),
    [
        (40.0, ("data.num_images=1600",)),  # 160 steps an epoch: a part of one
        (30.0, ()),  # 8 steps an epoch: many, each with a validation
        (30.0, ("trainer.check_val_every_n_epoch=7",)),
        (30.0, ("trainer.accumulate_grad_batches=2",)),
        (20.0, ("trainer.limit_val_batches=0",)),
    ],
)
def test_a_run_ends_when_its_time_is_up(seconds: float, overrides: tuple[str, ...], tmp_path: Path, clock: Clock) -> None:
    """With the whole end of a run: cosine at its end, validation, pictures, a checkpoint between two epochs."""
    module, trainer, seen = train(tmp_path, clock, seconds, *overrides)
    num = 1280 if "data.num_images=1600" in overrides else 64
    end = clock.now + 1.0 + num * (3e-4 + ENCODING)
    assert 0.95 * seconds <= end <= 1.01 * seconds
    assert module.total_steps == module.optimizer_steps
    assert seen.rates[-1] < 0.01 * seen.rates[0]
    assert (tmp_path / "images" / f"generated_epoch_{trainer.current_epoch:04d}.png").is_file()
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert epochs_done(last) == trainer.current_epoch == trainer.max_epochs
    assert last["flowergen"]["optimizer_steps"] == module.optimizer_steps
    assert seconds_spent(last) == seconds
    validates = "trainer.limit_val_batches=0" not in overrides
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file() == validates
    assert seen.validated[-1:] == [trainer.current_epoch] * validates


@pytest.mark.parametrize("later", [0.4, 2.5])
def test_a_machine_that_changes_its_mind_is_followed(later: float, tmp_path: Path, clock: Clock) -> None:
    """Faster or slower from the middle on: the horizon moves, the end does not."""
    _, _, seen = train(tmp_path, clock, 40.0, "data.num_images=1600", ageing=Ageing(clock, later, from_second=20.0))
    end = clock.now + 1.0 + 1280 * (3e-4 + ENCODING)
    assert 0.95 * 40 <= end <= 1.01 * 40
    assert (seen.horizons[15] < seen.horizons[-1]) == (later < 1)


class AgeingGrids(Ageing, ImageGrids):
    """And pictures that take 4 s, after every third epoch and the last one."""

    every_epochs, num_samples = 3, 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        epoch, may_draw = trainer.current_epoch + 1, pl_module.run_state.may_draw
        self.clock.now += 4.0 if (may_draw and epoch % self.every_epochs == 0) or epoch == trainer.max_epochs else 0.0


@pytest.mark.parametrize("seconds", [50.0, 54.0, 58.0, 62.0, 66.0, 70.0])
def test_the_last_epoch_has_what_is_not_drawn_in_every_one(seconds: float, tmp_path: Path, clock: Clock) -> None:
    """Grids after every epoch, and slower ones after every third and the last one; late by a grid and a step at most."""
    train(tmp_path, clock, seconds, "callbacks.images.every_epochs=1", ageing=AgeingGrids(clock))
    assert 0.93 * seconds <= clock.now + STORING <= seconds + 0.2 + 0.4


def test_a_resumed_run_goes_on_with_what_is_left(tmp_path: Path, clock: Clock) -> None:
    """20 s, then 42 of which 20 are spent; a checkpoint within the last epoch knows the seconds so far."""
    first, _, _ = train(tmp_path, clock, 20.0, "callbacks.checkpoints.checkpoint_every_steps=5")
    assert 19 <= clock.now + STORING <= 20.2
    before = clock.now
    last = tmp_path / "checkpoints" / "last.ckpt"
    second, _, seen = train(tmp_path, clock, 42.0, resume=last)
    assert 0.95 * 42 <= 20 + clock.now - before + STORING <= 1.01 * 42
    assert second.optimizer_steps > 2 * first.optimizer_steps - 10
    assert seen.horizons[0] == first.total_steps < seen.horizons[-1], "until there is a plan, the last one's"
    assert seconds_spent({"callbacks": {}}) == 0


def test_a_start_that_took_all_of_the_budget_leaves_no_negative_time(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(tmp_path, clock, 0.5)
    (line,) = (line for line in caplog.messages if line.startswith("budget of"))
    assert line.endswith("ETA 0:00:00")


def test_seconds_within_a_run_are_kept(clock: Clock) -> None:
    own = Budget(100.0, clock=clock)
    own.load_state_dict({"spent_seconds": 30.0, "total_steps": 7})
    clock.now = 5.0
    assert own.remaining == 65.0
    assert own.state_dict() == {"spent_seconds": 35.0, "total_steps": 7}
    own.over = True
    assert own.state_dict() == {"spent_seconds": 100.0, "total_steps": 7}


def test_a_budget_too_short_for_adversarial_training_is_refused_once_it_is_known(tmp_path: Path, clock: Clock) -> None:
    config = resolve(checked([*TINY_VAE_GAN, "trainer.budget=1h", "model.adversarial_start_steps=1000"])[0])
    data = build_datamodule(config)
    data.setup()
    trainer = build_trainer(config, RunFolder(tmp_path), None)
    (own,) = (callback for callback in trainer.callbacks if isinstance(callback, Budget))
    own.seconds, own.clock, own.started = 30.0, clock, clock()
    trainer.callbacks.append(Ageing(clock))
    with pytest.raises(UserError, match=r"adversarial_start_steps=1000 is never reached: this run has \d\d optimiser steps"):
        trainer.fit(build_module(config, len(data.class_names)), datamodule=data)


def test_a_share_of_the_steps_is_of_those_that_fit(tmp_path: Path, clock: Clock) -> None:
    """A warm-up over half of the run: the learning rate has risen to its full value in the middle, whatever the budget."""
    options = ("data.num_images=1600", "model.lr_schedule=constant", "model.lr_warmup_steps=0.5")
    for seconds in (40.0, 60.0):
        module, _, seen = train(tmp_path / str(seconds), clock, seconds, *options)
        full, half = seen.rates[-1], module.total_steps / 2
        assert len(seen.rates) == module.total_steps > 20
        assert 0.9 * half <= next(step for step, rate in enumerate(seen.rates, 1) if rate == full) <= 1.1 * half
        assert seen.rates[round(half / 2) - 1] == pytest.approx(full / 2, rel=0.2)


def test_adversarial_training_from_a_fraction_of_the_run_fits_every_budget(tmp_path: Path, clock: Clock) -> None:
    shares = ("model.adversarial_start_steps=0.9", "model.adversarial_ramp_steps=0.05")
    config = resolve(checked([*TINY_VAE_GAN, "trainer.budget=1h", *shares])[0])
    data = build_datamodule(config)
    data.setup()
    trainer, module = build_trainer(config, RunFolder(tmp_path), None), build_module(config, len(data.class_names))
    (own,) = (callback for callback in trainer.callbacks if isinstance(callback, Budget))
    own.seconds, own.clock, own.started = 30.0, clock, clock()
    trainer.callbacks.append(Ageing(clock))
    factors: list[float] = []
    ended = lambda trainer, module, *rest: factors.append(module.adversarial_factor)  # noqa: E731
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=ended))
    trainer.fit(module, datamodule=data)
    assert isinstance(module, VAEGANModule)
    start = next(step for step, factor in enumerate(factors) if factor > 0)
    assert 0.8 * len(factors) <= start < len(factors)
    assert factors[-1] == module.adversarial_weight


def test_timing_the_end_of_the_run_leaves_no_trace(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps with and without it: the same weights and the same validation, to the bit."""
    options = ("data.num_images=1600", "model.lr_schedule=constant", "model.norm=batch")
    timed, first, _ = train(tmp_path / "a", clock, 20.0, *options)
    monkeypatch.setattr(budget, "time_end_of_run", lambda *args: EndDurations(0.0, 0.0, 0.0))
    monkeypatch.setattr(budget, "plan", lambda at, *args: Plan(max(at.steps, timed.optimizer_steps), 1, True, at.steps + 1))
    plain, second, _ = train(tmp_path / "b", clock, 20.0, *options)
    assert plain.optimizer_steps == timed.optimizer_steps
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, timed.state_dict()[name]), name
    assert first.callback_metrics["val/loss"] == second.callback_metrics["val/loss"]
