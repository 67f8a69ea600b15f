"""Mix: between pictures and samples, and from class to class."""

from collections.abc import Callable

import pytest
import torch

from flowergen.errors import UserError
from flowergen.explorer import mixing
from flowergen.explorer.model import ExplorerModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three(diffusion: ExplorerModel) -> list[mixing.Ingredient]:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    samples = [mixing.from_sample(diffusion, label, 4) for label in (1, None)]
    return [mixing.from_picture(diffusion, x, "uploaded"), *samples]


def test_ingredients_are_encoded_pictures_and_samples(diffusion: ExplorerModel, three: list[mixing.Ingredient]) -> None:
    assert torch.equal(three[1].picture, diffusion.model.sample(1, 4, [1])[0])
    assert torch.equal(three[2].picture, diffusion.model.sample(1, 4)[0])
    assert [one.caption for one in three] == [
        "uploaded",
        f"{diffusion.class_names[1]}, seed 4",
        f"{diffusion.class_names[0]}, seed 4",
    ]


def test_an_autoencoder_samples_ingredients_too(autoencoder: ExplorerModel) -> None:
    assert torch.equal(mixing.from_sample(autoencoder, 2, 4).picture, autoencoder.model.sample(1, 4, [2])[0])
    assert mixing.from_sample(autoencoder, None, 4).caption == "sample, seed 4"


def test_the_slider_goes_through_all_ingredients(diffusion: ExplorerModel, three: list[mixing.Ingredient]) -> None:
    for place, one in zip((0, 0.5, 1), three, strict=True):
        assert torch.allclose(mixing.mix(diffusion, three, place, None, None, 1)[0], one.picture, atol=1e-5)
    between = mixing.mix(diffusion, three, 0.25, None, None, 1)
    assert (between - three[0].picture).abs().max() > 1e-3
    assert torch.allclose(mixing.mix(diffusion, three[:1], 0.7, None, None, 1)[0], three[0].picture, atol=1e-5)


def test_the_whole_way_begins_and_ends_at_the_ingredients(diffusion: ExplorerModel, three: list[mixing.Ingredient]) -> None:
    way = mixing.interpolate(diffusion, three)
    assert way.shape == (2 * mixing.STEPS_PER_PAIR, 3, 32, 32)
    for number, one in ((0, three[0]), (mixing.STEPS_PER_PAIR - 1, three[1]), (-1, three[2])):
        assert torch.allclose(way[number], one.picture, atol=1e-5)


def test_arithmetic_adds_the_difference_of_the_class_means(diffusion: ExplorerModel, three: list[mixing.Ingredient]) -> None:
    assert diffusion.store is not None
    means = [diffusion.store.latents[diffusion.store.labels == label].mean(0) for label in (3, 1)]
    expected = diffusion.model.decode((three[0].latent + 0.5 * (means[0] - means[1]))[None])
    assert torch.allclose(mixing.mix(diffusion, three, 0, 3, 1, 0.5), expected, atol=1e-5)
    assert torch.allclose(mixing.mix(diffusion, three, 0, 3, 3, 2)[0], three[0].picture, atol=1e-5)


def test_mistakes_are_one_line_errors(diffusion: ExplorerModel, three: list[mixing.Ingredient]) -> None:
    wrong: dict[str, Callable[[], object]] = {
        "add a picture or a sample first": lambda: mixing.mix(diffusion, [], 0, None, None, 1),
        "add two or more": lambda: mixing.interpolate(diffusion, three[:1]),
        "at most 8": lambda: mixing.add(three, three + three),
        "place must be a number from 0 to 1": lambda: mixing.mix(diffusion, three, 2, None, None, 1),
        "number of a class": lambda: mixing.mix(diffusion, three, 0, 4, None, 1),
        "The seed": lambda: mixing.from_sample(diffusion, 0, -1),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words):
            call()
