"""Computations of the tab Map: points on the plane of the latents, and the pictures at a place or along a line.

A place is [x, y]. One that is invalid, or a point that does not exist, raises a ``UserError``.
"""

from typing import Any

import torch
from matplotlib.colors import to_hex
from torch import Tensor

from flowergen.errors import UserError
from flowergen.explorer import validation
from flowergen.explorer.model import ExplorerModel
from flowergen.viz.latent_map import GREY, class_colors

NUM_STEPS = 8  # pictures along a dragged line
MAX_DISTANCE = 3.0  # largest distance of a place from the square around the points, in sides of that square


def map_data(explorer: ExplorerModel) -> dict[str, Any]:
    """Return what the browser draws: ``points`` as [x, y, class or -1], the ``names`` of the classes, and their ``colors``."""
    coordinates, labels = explorer.plane.coordinates.tolist(), explorer.points[1].tolist()
    found = sorted({label for label in labels if label >= 0})
    colors = dict(zip(found, class_colors(len(found)), strict=True))
    return {
        "points": [[round(x, 4), round(y, 4), label] for (x, y), label in zip(coordinates, labels, strict=True)],
        "names": {str(label): explorer.class_name(label) for label in found},
        "colors": {str(label): to_hex(color) for label, color in (*colors.items(), (-1, GREY))},
    }


def picture_of_point(explorer: ExplorerModel, number: Any) -> Tensor:
    """Return the picture (1, C, H, W) of a point, decoded from its stored latent."""
    latents = explorer.points[0]
    return explorer.model.decode(latents[validation.whole("A point", number, 0, len(latents) - 1), None]).cpu()


def pictures_at(explorer: ExplorerModel, place: Any) -> tuple[Tensor, int]:
    """Return the picture decoded at a place of the plane and that of the nearest point, (2, C, H, W), and its number."""
    (at,) = _places(explorer, [place])
    nearest = _nearest(explorer, at)
    z = torch.stack((_on_plane(explorer, at[None])[0], explorer.points[0][nearest].flatten()))
    return _decode(explorer, z), nearest


def pictures_along(explorer: ExplorerModel, start: Any, end: Any) -> Tensor:
    """Return the pictures along a straight line, (NUM_STEPS, C, H, W).

    The component orthogonal to the plane is interpolated from that of the point nearest to the start to that of the point
    nearest to the end: on the plane itself, pictures are blurred.
    """
    ends = _places(explorer, [start, end])
    rests = [explorer.points[0][number].flatten() - _on_plane(explorer, explorer.plane.coordinates[number, None])[0]
             for number in (_nearest(explorer, place) for place in ends)]  # fmt: skip
    t = torch.linspace(0, 1, NUM_STEPS)[:, None]
    line = _on_plane(explorer, (1 - t) * ends[0] + t * ends[1])
    return _decode(explorer, line + (1 - t) * rests[0] + t * rests[1])


def _places(explorer: ExplorerModel, places: list[Any]) -> Tensor:
    """Validate places and return them, (N, 2)."""
    most = (1 + MAX_DISTANCE) * float(explorer.plane.coordinates.abs().max())
    for place in places:
        if not isinstance(place, list | tuple) or len(place) != 2:
            raise UserError("click on the map to choose a place")
    return torch.tensor([[validation.real("A place on the map", value, -most, most) for value in place] for place in places])


def _nearest(explorer: ExplorerModel, place: Tensor) -> int:
    return int((explorer.plane.coordinates - place).square().sum(1).argmin())


def _on_plane(explorer: ExplorerModel, places: Tensor) -> Tensor:
    """Return the latents of places (N, 2), (N, D)."""
    return explorer.plane.mean + places @ explorer.plane.directions


def _decode(explorer: ExplorerModel, z: Tensor) -> Tensor:
    return explorer.model.decode(z.view(-1, *explorer.module.latent_shape)).cpu()
