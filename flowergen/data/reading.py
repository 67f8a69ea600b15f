"""Decoding of picture files to uint8 RGB pixels, and their fitting to the shape of a data set."""

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from flowergen.picture_shape import PictureShape

try:  # iPhone pictures, if the package is installed
    import_module("pillow_heif").register_heif_opener()
    HEIF = True
except ImportError:
    HEIF = False

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *((".heic", ".heif") if HEIF else ()),
)  # extensions of file names, in lower case
# Their formats. Pillow detects formats by content and would pass a disguised EPS file to Ghostscript, which executes it.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", *(("HEIF",) if HEIF else ()))

MAX_BYTES = 2**30  # per file; twice the uncompressed RGB size of the largest picture that Pillow accepts
MAX_SCANS = 100  # per JPEG, each a full pass; ten are usual. Same as libtiff's LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER
PIXELS_AT_ONCE = 2**28  # decoded by all threads together, at least seven bytes each: eleven photographs of 24 megapixels

# EXIF 2.3, section 4.6.4 A: transposition that turns each orientation upright
UPRIGHT_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])", re.DOTALL)  # JPEG markers that begin a segment, and the end marker
START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"

# Possible white values of Pillow's deep grey modes. None records its own, so the smallest that no pixel exceeds is used.
WHITE_LEVELS = {"I;16": (65535,), "I": (65535, 2**31 - 1), "F": (1, 255, 65535)}

Fit = Literal["crop", "pad"]  # how a picture is fitted to another aspect ratio


class UnreadablePicture(Exception):
    """Raised for a file that cannot be decoded; the message is a short one-line reason."""


def read_rgb(source: Path | bytes) -> np.ndarray:
    """Decode the first frame of a picture of any colour mode and turn it upright by its EXIF orientation.

    Transparency is composited over white. Grey of more than 8 bits is scaled, not clipped.

    Args:
        source: a file, or the bytes of one.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadablePicture: the file is missing, empty, truncated, not a picture, or has so many pixels or scans that it may
            be a decompression bomb.
    """
    # Pillow raises a dozen types of error on damaged files, including struct.error, KeyError and MemoryError.
    try:
        data = source if isinstance(source, bytes) else bytes_of(source)
        if not data:
            raise UnreadablePicture("empty file")
        with Image.open(BytesIO(data), formats=FORMATS) as image, _decoding_slot(image.width * image.height):
            if isinstance(image, JpegImageFile) and _num_scans(data) > MAX_SCANS:
                raise UnreadablePicture(f"more than {MAX_SCANS} scans, which may take forever")
            image.load()  # before the orientation is read: Pillow turns TIFF files upright on loading
            # not ImageOps.exif_transpose: it rewrites the remaining EXIF block, which fails if that is slightly damaged
            method = UPRIGHT_TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return _rgb(image if method is None else image.transpose(method))
    except UnreadablePicture:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePicture("not a picture") from error
    except Exception as error:
        raise UnreadablePicture(_reason(error)) from error


def bytes_of(path: Path) -> bytes:
    """Read the bytes of a picture file.

    Raises:
        UnreadablePicture: the file cannot be read, is larger than any picture, or is a folder, a pipe or a device.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadablePicture("a folder")
        if not stat.S_ISREG(status.st_mode):  # even opening a pipe may block for ever
            raise UnreadablePicture("a pipe or a device")
        if status.st_size > MAX_BYTES:
            raise UnreadablePicture(f"{status.st_size:,} bytes, too large for a picture")
        return path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(_reason(error)) from error


def fit_picture(image: np.ndarray, shape: PictureShape, fit: Fit = "crop") -> np.ndarray:
    """Scale a picture to a shape with Pillow's antialiased bicubic filter, keeping its aspect ratio.

    Args:
        image: (H', W', 3) uint8 RGB, larger or smaller than the shape.
        shape: (C, H, W). One channel is the luma of ITU-R 601, Pillow's conversion to "L".
        fit: ``crop`` scales it to cover the shape and crops the centre; ``pad`` scales it to fit inside, in the centre of
            black borders.

    Returns:
        (C, H, W) uint8.
    """
    picture, size = Image.fromarray(image), (shape.width, shape.height)
    if shape.channels == 1:
        picture = picture.convert("L")
    if fit == "crop":
        fitted = ImageOps.fit(picture, size, Image.Resampling.BICUBIC, centering=(0.5, 0.5))
    else:  # not ImageOps.pad: a side of a very long picture would round to 0
        scale = min(shape.width / picture.width, shape.height / picture.height)
        width, height = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        fitted = Image.new(picture.mode, size)
        whole = picture.resize((width, height), Image.Resampling.BICUBIC)
        fitted.paste(whole, ((shape.width - width) // 2, (shape.height - height) // 2))
    return np.ascontiguousarray(np.atleast_3d(np.asarray(fitted)).transpose(2, 0, 1))  # (C, H, W)


_pixels_left, _pixels_returned = PIXELS_AT_ONCE, threading.Condition()


@contextmanager
def _decoding_slot(num_pixels: int) -> Iterator[None]:
    """Wait until ``num_pixels`` can be decoded within the limit shared by all threads."""
    global _pixels_left
    num_pixels = min(num_pixels, PIXELS_AT_ONCE)
    with _pixels_returned:
        _pixels_returned.wait_for(lambda: _pixels_left >= num_pixels)
        _pixels_left -= num_pixels
    try:
        yield
    finally:
        with _pixels_returned:
            _pixels_left += num_pixels
            _pixels_returned.notify_all()


def _num_scans(data: bytes) -> int:
    """Count the scans of a JPEG up to its end, excluding thumbnails in its segments (ITU-T T.81, annex B)."""
    if data.count(b"\xff\xda") <= MAX_SCANS:  # upper bound, including thumbnails and data after the picture
        return 0
    scans, position = 0, 2
    while match := MARKER.search(data, position):
        marker, position = match[1], match.end()
        if marker == END_OF_IMAGE:
            break
        scans += marker == START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")  # skip the segment; scan data has no length field
    return scans


def _rgb(image: Image.Image) -> np.ndarray:
    depth = "I;16" if image.mode.startswith("I;16") else image.mode  # either byte order
    if depth in WHITE_LEVELS:
        grey = _to_8_bits(np.asarray(image), WHITE_LEVELS[depth])
        return np.repeat(grey[..., None], 3, axis=-1)  # (H, W, 3)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # (H, W, 3)


def _to_8_bits(grey: np.ndarray, whites: tuple[int, ...]) -> np.ndarray:
    strips = np.array_split(grey, min(len(grey), 1 + grey.size // 2**20))  # a whole picture in float64 could take gigabytes
    highest = max(_finite(strip).max() for strip in strips)
    white = next((white for white in whites if highest <= white), highest)
    return np.concatenate([np.rint(_finite(strip) * (255 / white)).astype(np.uint8) for strip in strips])


def _finite(grey: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(grey), grey, 0).astype(np.float64).clip(min=0)


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or error
    return " ".join(str(text).split()) or type(error).__name__
