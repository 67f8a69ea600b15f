"""The loaded model and the cached values that the tabs use."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowergen.data.image_datamodule import evenly_spaced
from flowergen.evaluation.latent_store import LatentStore
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.loading import load_run
from flowergen.runs.sampling import stored_latents
from flowergen.viz.latent_map import principal_plane

MAX_POINTS = 2000  # points on the map
NUM_DIRECTIONS = 6  # number of sliders
TRAVERSED_SIGMAS = 3.0  # standard deviations to each side, as in flowergen.vary mode=traverse


@dataclass(frozen=True)
class Directions:
    """Principal directions of latents.

    Attributes:
        mean: (D,) mean of the latents.
        directions: (K, D) orthonormal rows, the largest variance first.
        coordinates: (L, K) coordinates of the latents along the directions.
        shares: (K,) fractions of the variance of the latents.
    """

    mean: Tensor
    directions: Tensor
    coordinates: Tensor
    shares: Tensor

    @property
    def std(self) -> Tensor:
        """(K,) standard deviations of the latents along the directions."""
        return self.coordinates.std(0)


class ExplorerModel:
    """A loaded model, its stored latents, and the values computed from them."""

    def __init__(self, model: LoadedModel):
        self.model, self.module, self.class_names = model, model.module, list(model.class_names)
        self.store: LatentStore | None = stored_latents(model)

    @classmethod
    def load(cls, run: str) -> "ExplorerModel":
        """Load a run, on a GPU if there is one.

        Raises:
            UserError: see ``flowergen.load``.
        """
        return cls(load_run(run, "cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def has_latents(self) -> bool:
        """Whether pictures have latents that can be mixed and varied: not for diffusion on pixels."""
        return self.module.autoencoder is not None

    @property
    def has_map(self) -> bool:
        """Whether the run has stored at least three latents to draw a map of."""
        return self.has_latents and self.store is not None and len(self.store.latents) > 2

    @cached_property
    def points(self) -> tuple[Tensor, Tensor]:
        """The latents on the map, (L, C, h, w), and their classes (L,), -1 for none."""
        assert self.store is not None
        rows = torch.from_numpy(evenly_spaced(np.arange(len(self.store.latents)), MAX_POINTS))
        return self.store.latents[rows], self.store.labels[rows]

    @cached_property
    def plane(self) -> Directions:
        """The plane of the largest variance of the points, as ``flowergen.latents`` draws it."""
        return self._directions(2)

    @cached_property
    def directions(self) -> Directions:
        """The directions of the sliders."""
        return self._directions(NUM_DIRECTIONS)

    @cached_property
    def class_means(self) -> dict[int, Tensor]:
        """The mean latent (C, h, w) of each class that has stored latents."""
        if self.store is None:
            return {}
        latents, found = self.store.latents, self.store.labels
        return {label: latents[found == label].mean(0) for label in found.unique().tolist() if label >= 0}

    def class_name(self, label: int) -> str:
        """Return the name of a class; empty for an unknown label."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else ""

    def _directions(self, num: int) -> Directions:
        latents = self.points[0].flatten(1)
        mean, directions = principal_plane(latents, num)
        coordinates = (latents - mean) @ directions.T
        shares = coordinates.square().sum(0) / (latents - mean).square().sum().clamp_min(1e-30)
        return Directions(mean, directions, coordinates, shares)
