"""A training step reads nothing from the device and copies nothing to it, so that the host never waits for a GPU.

Tested without a GPU: the modules are on torch's meta device, which has no values to be read, and every operation on tensors of
both devices is refused. Drawing the noise (tests/test_randomness.py) and the optimiser's step are not part of this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowergen.data.batch import Batch, LatentBatch
from flowergen.modules.image_model import ImageModel
from tests.modules import test_decoder, test_vae, test_vae_gan
from tests.tiny_models import diffusion

META = torch.device("meta")


class NoCopies(TorchDispatchMode):
    """Refuses operations on tensors of the host and of the device; numbers are passed by value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        on_both = len({tensor.device.type for tensor in tensors}) > 1
        if on_both and ("copy" in str(func) or any(tensor.dim() and not tensor.is_meta for tensor in tensors)):
            raise AssertionError(f"{func} copies between {sorted({str(tensor.device) for tensor in tensors})}")
        return result


def on_device(module: ImageModel) -> ImageModel:
    """The module with what a Trainer gives it, drawing its noise on the device."""

    def draw(source: Callable[..., Tensor], num: int, shape: Sequence[int], batch_idx: int, purpose: str) -> Tensor:
        return torch.empty(num, *shape, device=META)

    module.draw_for_step = draw  # type: ignore[method-assign, assignment]
    module.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign, assignment]
    module.clip_gradients = clip  # type: ignore[method-assign]
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1,
        global_rank=0,
        log_every_n_steps=1000,
        accumulate_grad_batches=1,
        precision="32-true",
        num_training_batches=8,
    )
    return module.train().to(META)


def clip(optimizer: torch.optim.Optimizer, value: Any = None, algorithm: Any = None) -> None:
    """What Lightning's precision plugin does."""
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], value)


@contextmanager
def no_copies_after_the_first_step(step: Callable[[], None]) -> Iterator[None]:
    """What is kept on the device gets there in the first step."""
    step()
    with NoCopies():
        yield


def optimiser_step(module: ImageModel, optimizers: list[torch.optim.Optimizer]) -> None:
    """Lightning's part of it: gradients are watched and clipped, then applied."""
    module._trainer.optimizers = optimizers  # type: ignore[union-attr]
    for optimizer in optimizers:
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer, 1.0, "norm")
        with torch.utils._python_dispatch._disable_current_modes():  # whose step counts are on the host
            optimizer.step()
        optimizer.zero_grad()


def pictures(num: int, size: int) -> Batch:
    image, label = torch.empty(num, 3, size, size, device=META), torch.empty(num, dtype=torch.int64, device=META)
    return Batch(image, label, label)


def vae() -> tuple[ImageModel, Any]:
    module = test_vae.make(reconstruction="gaussian", sigma="learned", divergence="mmd", ema_decay=0.9)
    return module, pictures(8, module.picture_shape.height)


def vae_gan() -> tuple[ImageModel, Any]:
    module = test_vae_gan.make(
        test_vae_gan.ADVERSARIAL_STEP,
        discriminator=test_vae_gan.PATCH | {"kind": "projected"},
        ema_decay=0.9,
        accumulate_grad_batches=2,
    )
    return module, pictures(8, test_vae_gan.SIZE)


def latent_ddpm() -> tuple[ImageModel, Any]:
    module = diffusion(ema_decay=0.9)
    shape = (8, *module.latent_shape)
    mean, label = torch.empty(shape, device=META), torch.empty(8, dtype=torch.int64, device=META)
    return module, LatentBatch(mean, mean, label, label, torch.empty(8, 0, 1, 1, device=META))


def decoder() -> tuple[ImageModel, Any]:
    module = test_decoder.make(accumulate_grad_batches=2)
    module.latents, module.labels = module.latents.to(META), module.labels.to(META)
    return module, pictures(8, test_decoder.SIZE)


@pytest.mark.parametrize("family", [vae, vae_gan, latent_ddpm, decoder])
def test_a_step_reads_nothing_from_the_device_and_copies_nothing_to_it(
    family: Callable[[], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = family()
    on_device(module)
    monkeypatch.setattr(type(module), "global_rank", 0)
    made = module.configure_optimizers()
    optimizers = made if isinstance(made, list) else [made]

    def step() -> None:
        loss = module.training_step(batch, 0)
        if loss is not None:
            loss.backward()
        optimiser_step(module, optimizers)
        if getattr(module, "adversary", None) is not None:
            module.adversary.update_adaptive_weight(world_size=1)
        module.ema.update(module.net, 5)
        module.count_step({"lr": 1e-3})

    with no_copies_after_the_first_step(step):
        step()


def test_a_copy_is_noticed() -> None:
    with pytest.raises(AssertionError, match="copies between"), NoCopies():
        torch.ones(3).to(META)


def test_a_read_is_noticed() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META).sum().item()
