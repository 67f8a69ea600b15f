"""What all models share: optimisers on a GPU, clipping, and where the noise of a resumed run comes from."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from flowergen import randomness
from flowergen.modules import image_model
from flowergen.modules.image_model import ImageModel
from flowergen.randomness import normal
from tests.tiny_models import TinyAutoencoder


class Training(TinyAutoencoder):
    """Its decoder learns to be 0, with AdamW."""

    make_optimizer: Any = partial(torch.optim.AdamW, lr=0.1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.decode(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.build_optimizer(self.make_optimizer, self.decoder.parameters())

    def on_train_epoch_end(self) -> None:
        pass


def trained(tmp_path: Any, **options: Any) -> tuple[Training, torch.optim.Optimizer]:
    module = Training()
    z = torch.randn(4, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(z, batch_size=None))
    return module, trainer.optimizers[0]


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("clip", [("norm", 1e-3), ("value", 1e-3), (None, None)])
def test_clipping_is_lightning_s(clip: tuple[Any, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By norm and by value, to the bit, and none where none is asked for."""
    algorithm, value = clip
    options = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    ours, _ = trained(tmp_path, **options)
    monkeypatch.delattr(ImageModel, "configure_gradient_clipping")
    theirs, _ = trained(tmp_path, **options)
    assert torch.equal(weights(ours), weights(theirs))
    if value:
        unclipped, _ = trained(tmp_path)
        assert not torch.equal(weights(ours), weights(unclipped))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_optimisers_are_fused_and_clipped_under_bf16_too(
    algorithm: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own clipping refuses them."""
    options: dict[str, Any] = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "precision": "bf16-mixed"}
    with monkeypatch.context() as patched:
        patched.setattr(image_model, "FUSED_ON", ())
        plain, optimizer = trained(tmp_path, **options)
    assert not optimizer.defaults["fused"]
    fused, optimizer = trained(tmp_path, **options)
    assert optimizer.defaults["fused"]
    torch.testing.assert_close(weights(fused), weights(plain), rtol=1e-3, atol=1e-3)
    monkeypatch.delattr(ImageModel, "configure_gradient_clipping")
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        trained(tmp_path, **options)


def test_the_config_has_the_last_word_on_fused_and_other_optimisers_are_left_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (partial(torch.optim.AdamW, lr=0.1, fused=False), partial(torch.optim.Rprop, lr=0.1)):
        monkeypatch.setattr(Training, "make_optimizer", staticmethod(make))
        _, optimizer = trained(tmp_path)
        assert not optimizer.defaults.get("fused")


@pytest.mark.parametrize(("before", "is_said"), [("cuda", True), ("cpu", False), (None, False)])
def test_a_resume_on_another_kind_of_device_says_that_its_noise_changes(
    before: str | None, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Checkpoints from before there was a choice were trained with the CPU's noise."""
    caplog.set_level("INFO")
    module, checkpoint = TinyAutoencoder(), dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["flowergen"].pop("noise") == "cpu"
    if before:
        checkpoint["flowergen"]["noise"] = before
    module = TinyAutoencoder()
    module._trainer = SimpleNamespace(num_training_batches=4, max_epochs=2, is_global_zero=True, accumulate_grad_batches=1)  # type: ignore[assignment]
    module.on_train_start()
    assert not caplog.records, "a new run has no noise to change"
    module.on_load_checkpoint(checkpoint)
    module.on_train_start()
    assert ("training noise was drawn on the cuda until now and is drawn on the cpu from here on" in caplog.text) == is_said


def test_a_model_that_is_where_it_should_be_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TinyAutoencoder()
    assert module.on_device(torch.device("meta")).encoder.weight.is_meta
    monkeypatch.setattr(module, "to", None)
    assert module.on_device(torch.device("meta")) is module


@pytest.mark.parametrize("kind", ["cpu", "none"])
def test_devices_and_parts_of_a_step_share_one_draw(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices that accumulate twice draw what one device draws at once; by the code for a CPU, and by that for a GPU."""
    monkeypatch.setattr(randomness, "OWN_NOISE_DEVICES", (kind,))
    module = TinyAutoencoder()
    module.optimizer_steps = 3

    def drawn_by(devices: int, rank: int, accumulate: int, batch_idx: int) -> Tensor:
        trainer = SimpleNamespace(world_size=devices, global_rank=rank, accumulate_grad_batches=accumulate)
        module._trainer = trainer  # type: ignore[assignment]
        return module.draw_for_step(normal, 8 // devices // accumulate, (2, 3), batch_idx, "posterior")

    whole = drawn_by(1, 0, 1, 5)
    parts = [drawn_by(2, rank, 2, batch_idx) for batch_idx in (10, 11) for rank in (0, 1)]
    assert whole.shape == (8, 2, 3)
    assert torch.equal(torch.cat(parts), whole)
