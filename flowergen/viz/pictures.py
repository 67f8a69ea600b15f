"""Pictures that a notebook displays."""

import io
from typing import Any

from PIL import Image
from torch import Tensor

from flowergen.torch_internals import with_plain_tensors
from flowergen.viz.grids import image_grid

SHOWN_PX = 96  # smallest height of a displayed picture; smaller ones are enlarged
MAX_COLUMNS = 10


class Pictures(Tensor):
    """Pictures (N, C, H, W) in [0, 1], C = 3 for colour or 1 for grey. It is a tensor; a notebook displays it as a grid.

    The results of operations on it are ordinary tensors.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with ordinary tensors."""
        return with_plain_tensors(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as an ordinary tensor, which ``torch.load`` reads without trusting this class."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    @classmethod
    def of(cls, x: Tensor) -> "Pictures":
        """Return the same values, (N, C, H, W) in [0, 1]."""
        return x.as_subclass(cls)

    def pil(self) -> list[Image.Image]:
        """Return each picture as a PIL image, of mode RGB, or L for a grey one."""
        images = [Image.fromarray(image_grid(image[None], columns=1)) for image in self]
        return images if self.shape[1] == 3 else [image.convert("L") for image in images]

    def grid(self, columns: int | None = None) -> Image.Image:
        """Arrange the pictures in a grid; ``columns`` is chosen by their number if it is None."""
        columns = columns or min(MAX_COLUMNS, max(1, round((1.5 * len(self)) ** 0.5)))
        return Image.fromarray(image_grid(self, columns))

    def _repr_png_(self) -> bytes:
        """Return the grid as a PNG file, small pictures enlarged; IPython calls this."""
        grid, factor = self.grid(), -(-SHOWN_PX // self.shape[-2])
        file = io.BytesIO()
        grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST).save(file, format="PNG")
        return file.getvalue()
