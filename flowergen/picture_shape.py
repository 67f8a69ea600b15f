"""The shape of pictures. Imports nothing heavy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ImageSize = int | Sequence[int]  # in px: the side of a square, or height and width
SHOWN_PX = 128  # minimum width at which small pictures are shown


class PictureShape(NamedTuple):
    """(C, H, W): 3 channels for colour or 1 for grey, height and width in px. It prints as ``48 x 64 px in grey``."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, image_size: ImageSize, channels: int = 3) -> "PictureShape":
        """Return the shape of pictures of a size, ``data.image_size`` of a config, and a number of channels."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return cls(channels, height, width)

    @classmethod
    def from_config(cls, data: Any) -> "PictureShape":
        """Return the shape of the pictures that the ``data`` group of a config describes."""
        return cls.of(data["image_size"], data.get("channels", 3))

    @property
    def image_size(self) -> int | list[int]:
        """The size as in a config: the side of a square, or [height, width]."""
        return self.height if self.height == self.width else [self.height, self.width]

    @property
    def short_side(self) -> int:
        """The smaller of height and width, in px."""
        return min(self.height, self.width)

    @property
    def enlargement(self) -> int:
        """The smallest integer factor with which the picture is at least ``SHOWN_PX`` wide."""
        return max(1, -(-SHOWN_PX // self.width))

    @property
    def num_values(self) -> int:
        """C H W, the number of values of a picture."""
        return self.channels * self.height * self.width

    def __str__(self) -> str:
        size = f"{self.height} px" if self.height == self.width else f"{self.height} x {self.width} px"
        return size if self.channels == 3 else f"{size} in grey"
