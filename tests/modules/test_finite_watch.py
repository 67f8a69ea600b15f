"""Losses and gradients that are not finite."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from flowergen.modules.finite_watch import FiniteWatch, NotFinite
from flowergen.modules.image_model import MAX_SKIPPED, ImageModel
from flowergen.modules.running_means import batch_sums
from tests.modules.test_vae import make as make_vae
from tests.modules.test_vae_gan import make as make_vae_gan
from tests.tiny_models import drawn

make_adversarial = partial(make_vae_gan, adversarial_start_steps=1, ema_decay=0.9)
INF, NAN = float("inf"), float("nan")


def test_the_first_step_and_what_was_bad_in_it_are_found_whoever_asks_when() -> None:
    """Of values per picture and scalars; one infinite picture is enough, and what comes later does not count."""
    watch = FiniteWatch()
    for step in range(1, 6):
        kl = torch.ones(4)
        kl[2] = INF if step >= 3 else 1.0
        terms = {"loss": kl + 1, "loss_kl": kl, "sigma": torch.tensor(NAN if step >= 4 else 1.0)}
        watch.check(list(terms), batch_sums(terms)[0], step)
        watch.check(["gradient"], torch.tensor([NAN if step >= 3 else 1.0]), step)
    assert watch.first_nonfinite() == (3, ["loss_kl"])
    assert watch.first_nonfinite() is None, "what was found is known"


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_what_sums_up_is_named_where_nothing_else_is_bad(name: str) -> None:
    watch = FiniteWatch()
    watch.check(["loss", "loss_kl"], torch.ones(2), 1)
    assert watch.first_nonfinite() is None
    watch.check([name], torch.tensor([-INF]), 2)
    assert watch.first_nonfinite() == (2, [name])


class States(Callback):
    """Weights, buffers and optimiser after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageModel, *args: Any) -> None:
        optimizers = {f"optimizer {i}": o.state_dict()["state"] for i, o in enumerate(trainer.optimizers)}
        self.states.append(copy.deepcopy(dict(pl_module.state_dict()) | optimizers))


def train(module: ImageModel, cache_dir: Path, parts: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """Eight steps of four pictures."""
    data = drawn(cache_dir, image_size=module.picture_shape.image_size, batch_size=4)
    states = States()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[states], enable_checkpointing=False,
        use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=0, **changes,
    )  # fmt: skip
    data.setup()
    trainer.fit(module, datamodule=data)
    return states.states


def poison(module: ImageModel, steps: set[int]) -> None:
    """Make the KL of one picture infinite in these optimiser steps, counted from 1."""
    objective = module.objective  # type: ignore[attr-defined]

    def poisoned(*args: Any) -> dict[str, torch.Tensor]:
        terms = objective(*args)
        if module.training and module.optimizer_steps + 1 in steps:
            bad = torch.zeros_like(terms["loss_kl"])
            bad[1] = INF
            terms |= {"loss": terms["loss"] * (1 + bad), "loss_kl": terms["loss_kl"] + bad}
        return terms

    module.objective = poisoned  # type: ignore[method-assign, assignment]


def assert_equal_states(a: dict[str, Any], b: dict[str, Any]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("make", [make_vae, make_adversarial])
def test_training_stops_before_the_weights_are_harmed(make: Any, cache_dir: Path) -> None:
    """Step and term are named, and the weights are finite."""
    module = make()
    poison(module, {3})
    with pytest.raises(NotFinite, match=r"optimiser step 3: loss_kl is not finite: .*trainer\.on_nonfinite=skip"):
        train(module, cache_dir)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert module.optimizer_steps == 2


def test_a_bad_gradient_of_a_good_loss_is_found(cache_dir: Path) -> None:
    module = make_vae()
    weight = next(module.net.parameters())
    weight.register_hook(lambda grad: grad * INF if module.optimizer_steps == 1 else grad)
    with pytest.raises(NotFinite, match="optimiser step 2: gradient is not finite"):
        train(module, cache_dir)


@pytest.mark.parametrize("make", [make_vae, make_adversarial])
def test_a_skipped_step_leaves_weights_buffers_and_optimisers_as_they_were(make: Any, cache_dir: Path) -> None:
    """Batch normalisation's statistics among them; the step counts, its losses do not, and training goes on."""
    module = make(**({"norm": "batch"} if make is make_vae else {}))
    module.on_nonfinite = "skip"
    poison(module, {3})
    states = train(module, cache_dir)
    assert_equal_states(states[2], states[1])
    with pytest.raises(AssertionError):
        assert_equal_states(states[3], states[2])
    assert module.optimizer_steps == 8
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_second_part_of_a_bad_step_does_not_make_it_good(cache_dir: Path) -> None:
    """Two batches a step: one of them bad is enough, and the epoch's means are those of the good batches."""
    module = make_vae()
    module.on_nonfinite = "skip"
    poison(module, {2})
    means: list[dict[str, float]] = []
    module.on_train_epoch_end = lambda: means.append(module.epoch_means.compute())  # type: ignore[method-assign]
    states = train(module, cache_dir, accumulate_grad_batches=2)
    assert_equal_states(states[3], states[1])
    assert all(torch.isfinite(torch.tensor(list(means[0].values()))))


def test_what_has_diverged_for_good_ends(cache_dir: Path) -> None:
    module = make_vae()
    module.on_nonfinite = "skip"
    poison(module, set(range(2, 100)))
    assert MAX_SKIPPED == 20
    for _ in range(2):
        train(module, cache_dir)  # steps 2 to 16 are skipped
    with pytest.raises(NotFinite, match="step 21: loss_kl is not finite, the 20th step in a row"):
        train(module, cache_dir)


def test_both_networks_step_or_neither_does(cache_dir: Path) -> None:
    """A bad gradient of the discriminator's alone leaves the generator where it was, too."""
    module = make_adversarial()
    module.on_nonfinite = "skip"
    assert module.adversary is not None
    weight = next(module.adversary.discriminator.parameters())
    weight.register_hook(lambda grad: grad * INF if module.optimizer_steps == 2 else grad)
    states = train(module, cache_dir)
    assert_equal_states(states[2], states[1])


def test_weights_that_are_not_finite_are_no_checkpoint(cache_dir: Path) -> None:
    """Losses and gradients may have been finite before the last step."""
    module = make_vae()
    module.stop_if_not_finite(check_weights=True)
    with torch.no_grad():
        next(module.parameters())[0] = NAN
    module.stop_if_not_finite()
    with pytest.raises(NotFinite, match="weights is not finite"):
        module.stop_if_not_finite(check_weights=True)
