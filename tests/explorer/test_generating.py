"""Generate: the pictures of ``LoadedModel.sample``, and the denoising on the way to them."""

from typing import Any

import pytest
import torch

from flowergen.errors import UserError
from flowergen.explorer.generating import MAX_FRAMES, NOISY, captions, generate, labels_of, samplers_of
from flowergen.explorer.model import ExplorerModel
from flowergen.modules.latent_ddpm import LatentDDPMModule

pytestmark = pytest.mark.slow
OPTIONS = {"sampler": "ddim", "steps": 5, "guidance_scale": 1.5, "guidance_interval": (0.0, 1.0)}


def test_the_last_frame_is_what_the_model_samples(diffusion: ExplorerModel) -> None:
    frames = list(generate(diffusion, 3, 7, [2, 0], OPTIONS | {"sampler": "dpmpp_2m"}))
    expected = diffusion.model.sample(3, 7, [2, 0], steps=5, guidance_scale=1.5)
    assert [(frame.step, frame.steps) for frame in frames] == [(step, 5) for step in range(1, 6)]
    assert torch.equal(frames[-1].pictures, expected)
    assert not torch.equal(frames[-2].pictures, expected)
    assert all(frame.pictures.shape == (3, 3, 32, 32) for frame in frames)
    assert not any(frame.pictures.is_inference() and frame.pictures.requires_grad for frame in frames)


def test_the_noisy_pictures_can_be_displayed_instead(diffusion: ExplorerModel) -> None:
    estimates, noisy = (list(generate(diffusion, 1, 0, [], OPTIONS, *watched)) for watched in ((), (NOISY,)))
    assert not torch.equal(estimates[0].pictures, noisy[0].pictures)
    assert torch.equal(estimates[-1].pictures, noisy[-1].pictures)


def test_of_many_steps_few_are_decoded(diffusion: ExplorerModel) -> None:
    frames = [frame.step for frame in generate(diffusion, 1, 0, [], OPTIONS | {"steps": 40})]
    assert len(frames) == MAX_FRAMES
    assert (frames[0], frames[-1]) == (1, 40)


def test_without_classes_all_of_them_in_turn(diffusion: ExplorerModel, autoencoder: ExplorerModel) -> None:
    assert labels_of(diffusion, [], 5).tolist() == [0, 1, 2, 3, 0]
    assert labels_of(autoencoder, None, 2).tolist() == [-1, -1]
    assert captions(diffusion, [1, 0]) == [diffusion.class_names[1], diffusion.class_names[0]]
    assert captions(autoencoder, [-1, -1]) == ["picture 1", "picture 2"]


@pytest.mark.parametrize("classes", [[], [3]])
def test_an_autoencoder_samples_at_once(autoencoder: ExplorerModel, classes: list[int]) -> None:
    (frame,) = generate(autoencoder, 2, 1, classes, {})
    assert torch.equal(frame.pictures, autoencoder.model.sample(2, 1, classes or None))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num": 17}, "number of pictures must be a whole number from 1 to 16"),
        ({"num": "many"}, "number of pictures"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"classes": [4]}, "number of a class must be a whole number from 0 to 3"),
        ({"watched": "x"}, "displayed state must be one of"),
        ({"sampler": "heun"}, "sampler must be one of ddpm, ddim, dpmpp_2m"),
        ({"steps": 10**9}, "Steps must be a whole number from 1 to 200"),
        ({"guidance_scale": float("nan")}, "Guidance must be a number"),
        ({"guidance_interval": (0, 2)}, "interval must be a number from 0 to 1"),
    ],
)
def test_invalid_values_are_one_line_errors(diffusion: ExplorerModel, changed: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"num": 1, "seed": 0, "classes": [], "watched": NOISY} | OPTIONS | changed
    options = {key: given[key] for key in OPTIONS}
    with pytest.raises(UserError, match=words):
        next(generate(diffusion, given["num"], given["seed"], given["classes"], options, given["watched"]))


def test_samplers_of_a_flow_are_not_offered_for_other_models(diffusion: ExplorerModel) -> None:
    assert isinstance(diffusion.module, LatentDDPMModule)
    assert samplers_of(diffusion.module) == ["ddpm", "ddim", "dpmpp_2m"]
