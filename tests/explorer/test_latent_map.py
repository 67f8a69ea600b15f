"""Map: places on the plane of the latents."""

import json
from typing import Any

import pytest
import torch

from flowergen.errors import UserError
from flowergen.explorer import latent_map
from flowergen.explorer.model import ExplorerModel

pytestmark = pytest.mark.slow


def test_points_are_the_principal_coordinates_of_the_stored_latents(diffusion: ExplorerModel) -> None:
    assert diffusion.store is not None
    data = latent_map.map_data(diffusion)
    assert len(data["points"]) == len(diffusion.store.latents) == 64
    assert [label for *_, label in data["points"]] == diffusion.store.labels.tolist()
    z = diffusion.store.latents.flatten(1)
    _, variance, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    found = torch.tensor([[x, y] for x, y, _ in data["points"]])
    assert torch.allclose(found.square().sum(0).sqrt(), variance[:2], rtol=1e-3)
    assert torch.allclose(found, diffusion.plane.coordinates, atol=1e-3)
    assert data["names"] == {str(label): name for label, name in enumerate(diffusion.class_names)}
    assert len({data["colors"][label] for label in ("-1", "0", "1", "2", "3")}) == 5
    assert json.loads(json.dumps(data)) == data


def test_a_click_on_a_point_finds_it(diffusion: ExplorerModel) -> None:
    place = latent_map.map_data(diffusion)["points"][17][:2]
    x, nearest = latent_map.pictures_at(diffusion, place)
    assert nearest == 17
    assert torch.allclose(x[1:], latent_map.picture_of_point(diffusion, 17), atol=1e-5)
    plane = diffusion.plane
    z = (plane.mean + torch.tensor(place) @ plane.directions).view(1, *diffusion.module.latent_shape)
    assert torch.allclose(x[:1], diffusion.model.decode(z), atol=1e-5)


def test_a_walk_between_two_points_begins_and_ends_at_their_pictures(diffusion: ExplorerModel) -> None:
    points = diffusion.plane.coordinates[[3, 40]].tolist()
    way = latent_map.pictures_along(diffusion, *points)
    assert way.shape == (latent_map.NUM_STEPS, 3, 32, 32)
    for step, number in ((0, 3), (-1, 40)):
        assert torch.allclose(way[step], latent_map.picture_of_point(diffusion, number)[0], atol=1e-4)


@pytest.mark.parametrize("place", [None, [1], [1, "2"], [1e9, 0], "12", [float("nan"), 0], {"x": 1}])
def test_an_invalid_place_is_a_one_line_error(diffusion: ExplorerModel, place: Any) -> None:
    with pytest.raises(UserError, match="place"):
        latent_map.pictures_at(diffusion, place)
    with pytest.raises(UserError, match="place"):
        latent_map.pictures_along(diffusion, [0, 0], place)


@pytest.mark.parametrize("number", [-1, 64, "1", None])
def test_an_unknown_point_is_a_one_line_error(diffusion: ExplorerModel, number: Any) -> None:
    with pytest.raises(UserError, match="A point"):
        latent_map.picture_of_point(diffusion, number)
