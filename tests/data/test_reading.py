import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from flowergen.data.reading import IMAGE_EXTENSIONS, Fit, UnreadablePicture, fit_picture, read_rgb
from flowergen.picture_shape import PictureShape

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


# ---- Orientation
UPRIGHT = {  # how the stored picture must be turned, written with array indices
    1: NOISE,
    2: NOISE[:, ::-1],
    3: NOISE[::-1, ::-1],
    4: NOISE[::-1],
    5: NOISE.transpose(1, 0, 2),
    6: np.rot90(NOISE, -1),
    7: NOISE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(NOISE, 1),
}


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(image_format: str, orientation: int) -> None:
    """The eight EXIF orientations are undone in every format that has them, as by Pillow's function and by indexing."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(NOISE, image_format, exif=exif, **({"lossless": True} if image_format == "WEBP" else {}))
    image = read_rgb(data)
    np.testing.assert_array_equal(image, np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data)))))
    if image_format != "JPEG":
        np.testing.assert_array_equal(image, UPRIGHT[orientation])


def test_a_damaged_exif_block_does_not_spoil_the_picture() -> None:
    """Where ImageOps.exif_transpose gives up on the rest of the block, the orientation is still obeyed."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "flowergen"
    data = bytearray(encoded(NOISE, "JPEG", exif=exif))
    data[data.index(b"Exif") + 17] = 0  # the type of Make
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert read_rgb(bytes(data)).shape == (60, 40, 3)


# ---- Colour modes
@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "P", "RGB")],
        *[(mode, "TIFF") for mode in ("CMYK", "YCbCr", "L", "RGB")],
        *[(mode, "JPEG") for mode in ("CMYK", "L", "RGB")],
        *[("P", "GIF"), ("RGB", "WEBP"), ("RGB", "PPM"), ("L", "PPM"), ("1", "PPM"), ("P", "BMP")],
    ],
)
def test_every_colour_mode_becomes_rgb(mode: str, image_format: str) -> None:
    """Modes without depth or transparency of their own come out as Pillow's convert("RGB") gives them."""
    data = encoded(Image.fromarray(NOISE).convert(mode), image_format)
    image = read_rgb(data)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(image, np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode: str) -> None:
    """The result is alpha * colour + (1 - alpha) * white, to one level of rounding."""
    rgba = np.dstack([NOISE, np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))])
    image = Image.fromarray(rgba).convert(mode)
    colour, alpha = np.asarray(image.convert("RGB")).astype(float), np.asarray(image)[..., -1:] / 255.0
    expected = alpha * colour + (1 - alpha) * 255
    np.testing.assert_allclose(read_rgb(encoded(image, "PNG")), expected, atol=1)


def test_a_transparent_palette_entry_or_colour_turns_white() -> None:
    """One transparent entry of a palette (PNG, GIF), and one transparent colour of an RGB or grey PNG, show white."""
    stripes = np.repeat(np.array([0, 1, 2], dtype=np.uint8), 4)[None].repeat(5, axis=0)
    palette = Image.fromarray(stripes).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    expected = [[200, 0, 0], [255, 255, 255], [0, 0, 200]]
    rgb = palette.convert("RGB")
    for data in (
        encoded(palette, "PNG", transparency=1),
        encoded(palette, "GIF", transparency=1),
        encoded(palette, "PNG", transparency=bytes([255, 0, 255])),
        encoded(rgb, "PNG", transparency=(0, 200, 0)),
    ):
        assert read_rgb(data)[2, [1, 5, 9]].tolist() == expected
    grey = read_rgb(encoded(Image.fromarray(stripes), "PNG", transparency=1))
    assert grey[2, [1, 5, 9], 0].tolist() == [0, 255, 2]


# ---- Grey of more than 8 bits
RAMP = np.arange(65536).reshape(256, 256)
RAMP_8_BITS = (RAMP + 128) // 257  # 65535 = 255 * 257, rounded to nearest


@pytest.mark.parametrize(
    ("image_format", "stored"),
    [
        ("PNG", RAMP.astype("<u2")),
        ("TIFF", RAMP.astype("<u2")),
        ("TIFF", RAMP.astype(">u2")),
        ("PPM", RAMP.astype("<u2")),
        ("TIFF", RAMP.astype(np.int32)),
        ("TIFF", RAMP.astype(np.float32)),
    ],
)
def test_a_deep_ramp_is_scaled_and_not_clipped(image_format: str, stored: np.ndarray) -> None:
    """All 65,536 levels land on the nearest of 256, in all three channels, whichever way they are stored."""
    image = read_rgb(encoded(stored, image_format))
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], RAMP_8_BITS)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0, 257, 2570]], dtype=np.uint16), [0, 1, 10]),  # dark is not brightened
        (np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 100, 200]], dtype=np.int32), [0, 0, 1]),
        (np.array([[-40000, 0, 65535]], dtype=np.int32), [0, 0, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 12.4, 255]], dtype=np.float32), [0, 12, 255]),
        (np.array([[0, 1e6, 2e6]], dtype=np.float32), [0, 128, 255]),
        (np.array([[np.nan, -np.inf, 1]], dtype=np.float32), [0, 0, 255]),
        (np.zeros((1, 3), dtype=np.float32), [0, 0, 0]),
    ],
)
def test_white_is_the_smallest_usual_value_that_holds_all_pixels(stored: np.ndarray, expected: list[int]) -> None:
    assert read_rgb(encoded(stored, "TIFF"))[0, :, 0].tolist() == expected


# ---- Files that do not decode
def test_the_first_frame_of_an_animation_is_read() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert read_rgb(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_half_a_file_is_unreadable(image_format: str) -> None:
    """No format gives half a picture for half a file."""
    data = encoded(NOISE, image_format)
    assert read_rgb(data).shape == (40, 60, 3)
    with pytest.raises(UnreadablePicture):
        read_rgb(data[: len(data) // 2])


def test_the_reason_is_a_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong, UnreadablePicture says it in one short line."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(NOISE).save(tmp_path / "bomb.png")
    reasons = {}
    for name in ("missing.png", "folder.png", "empty.png", "text.png", "bomb.png"):
        with pytest.raises(UnreadablePicture) as raised:
            read_rgb(tmp_path / name)
        reasons[name] = str(raised.value)
    assert reasons["missing.png"] == "No such file or directory"
    assert reasons["empty.png"] == "empty file"
    assert reasons["text.png"] == "not a picture"
    assert "bomb" in reasons["bomb.png"]
    assert all(reason and "\n" not in reason and len(reason) < 120 for reason in reasons.values())


def test_a_program_in_disguise_is_not_executed() -> None:
    """PostScript, which Pillow would hand to Ghostscript, is no picture here."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(BytesIO(eps)).format == "EPS"
    with pytest.raises(UnreadablePicture, match=r"^not a picture$"):
        read_rgb(eps)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it repairs
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
def test_nothing_but_unreadable_picture_escapes(image_format: str) -> None:
    """Of 300 randomly damaged files each decodes to uint8 (H, W, 3) or raises UnreadablePicture."""
    rng = np.random.default_rng(1)
    good = np.frombuffer(encoded(NOISE, image_format), dtype=np.uint8)
    unreadable = 0
    for _ in range(300):
        damaged = good.copy()
        where = rng.integers(0, rng.choice([60, len(good)]), rng.integers(1, 10))
        damaged[where] = rng.integers(0, 256, len(where))
        try:
            image = read_rgb(damaged.tobytes())
        except UnreadablePicture:
            unreadable += 1
        else:
            assert (image.ndim, image.shape[-1], image.dtype) == (3, 3, np.uint8)
    assert unreadable > 50


def test_extensions_are_lower_case_and_hold_the_common_ones() -> None:
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"} <= set(IMAGE_EXTENSIONS)
    assert all(extension == extension.lower() and extension[0] == "." for extension in IMAGE_EXTENSIONS)


@pytest.mark.parametrize(("image_format", "extension"), [("AVIF", ".avif"), ("HEIF", ".heic")])
def test_formats_of_cameras_and_the_web(image_format: str, extension: str) -> None:
    """Read as Pillow reads them, within what their lossy coding changes."""
    smooth = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    data = encoded(smooth, image_format, quality=95)
    assert extension in IMAGE_EXTENSIONS
    image = read_rgb(data)
    np.testing.assert_array_equal(image, np.asarray(Image.open(BytesIO(data)).convert("RGB")))
    assert np.abs(image.astype(int) - smooth).max() < 12
    with pytest.raises(UnreadablePicture):
        read_rgb(data[: len(data) // 2])


# ---- Shapes
SIZES = [(1, 1), (1, 500), (500, 1), (7, 3), (64, 64), (150, 149), (333, 500)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [32, 150, [32, 48], [48, 32]])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_any_size_becomes_the_shape(size: tuple[int, int], image_size: int | list[int], channels: int, fit: Fit) -> None:
    """Smaller, larger, odd and extreme pictures; a uniform one keeps its colour exactly, inside black borders if padded."""
    shape = PictureShape.of(image_size, channels)
    fitted = fit_picture(np.full((*size, 3), (10, 128, 250), dtype=np.uint8), shape, fit)
    assert (fitted.shape, fitted.dtype, fitted.flags.c_contiguous) == (shape, np.uint8, True)
    colour = np.array([10, 128, 250] if channels == 3 else [107])[:, None, None]  # 0.299 x 10 + 0.587 x 128 + 0.114 x 250
    inside = (fitted != 0).any(axis=0)
    assert (fitted == np.where(inside, colour, 0)).all()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    scale = min(shape.height / size[0], shape.width / size[1])
    whole = [max(1, round(scale * side)) for side in size] if fit == "pad" else [shape.height, shape.width]
    assert [len(rows), len(columns)] == whole
    assert inside.sum() == len(rows) * len(columns)
    for found, side in ((rows, shape.height), (columns, shape.width)):
        assert found[0] == (side - len(found)) // 2, "centred"


@pytest.mark.parametrize("size", [(40, 60), (61, 47), (20, 20), (32, 32), (500, 333)])
@pytest.mark.parametrize("size_px", [32, 150])
def test_a_square_in_colour_is_pillow_s_own_fit(size: tuple[int, int], size_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(ImageOps.fit(Image.fromarray(image), (size_px, size_px), Image.Resampling.BICUBIC))
    for shape in (PictureShape.of(size_px), PictureShape.of([size_px, size_px])):
        np.testing.assert_array_equal(fit_picture(image, shape), expected.transpose(2, 0, 1))


def test_crop_takes_the_centre_and_pad_keeps_all() -> None:
    """6 x 12 distinct pixels, at their own scale: which of them are left, and what is around them."""
    image = np.arange(1, 6 * 12 * 3 + 1, dtype=np.uint8).reshape(6, 12, 3)
    planes = image.transpose(2, 0, 1)
    np.testing.assert_array_equal(fit_picture(image, PictureShape.of([6, 8])), planes[:, :, 2:10])
    np.testing.assert_array_equal(fit_picture(image, PictureShape.of([4, 12])), planes[:, 1:5])
    np.testing.assert_array_equal(fit_picture(image, PictureShape.of([6, 12])), planes)
    for size, above, beside in (([6, 12], 0, 0), ([12, 12], 3, 0), ([9, 12], 1, 0), ([6, 15], 0, 1)):
        expected = np.zeros((3, *size), dtype=np.uint8)
        expected[:, above : above + 6, beside : beside + 12] = planes
        np.testing.assert_array_equal(fit_picture(image, PictureShape.of(size), "pad"), expected)


def test_pad_scales_the_whole_picture() -> None:
    """Three stripes beside each other, red, green and blue; apart from the filter's reach."""
    image = np.repeat(np.eye(3, dtype=np.uint8) * 255, 30, axis=0)[None].repeat(30, axis=0)  # (30, 90, 3)
    fitted = fit_picture(image, PictureShape.of(30), "pad")
    assert not fitted[:, :10].any()
    assert not fitted[:, 20:].any()
    for channel in range(3):
        np.testing.assert_array_equal(fitted[channel, 10:20, 10 * channel + 3 : 10 * channel + 7], 255)


def test_grey_is_the_luma_of_itu_r_601() -> None:
    """0.299 red + 0.587 green + 0.114 blue, rounded; what is grey already stays as it is."""
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 128, 250]]], dtype=np.uint8)
    np.testing.assert_array_equal(fit_picture(image, PictureShape.of([1, 5], 1)), [[[76, 150, 29, 255, 107]]])
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(fit_picture(levels[..., None].repeat(3, -1), PictureShape.of(16, 1))[0], levels)


@pytest.mark.parametrize("size_px", [32, 64, 200])
def test_resizing_is_antialiased_bicubic(size_px: int) -> None:
    """Agrees with torch's antialiased bicubic interpolation to one level, for smaller and larger squares."""
    rng = np.random.default_rng(2)
    image = rng.integers(80, 176, (150, 150, 3), dtype=np.uint8)  # Pillow clips between its two passes
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()  # (1, 3, 150, 150)
    x_resized = torch.nn.functional.interpolate(x, (size_px, size_px), mode="bicubic", antialias=True)
    expected = x_resized.clamp(0, 255)[0].numpy()
    np.testing.assert_allclose(fit_picture(image, PictureShape.of(size_px)), expected, atol=1.2)  # it rounds twice


def test_a_fine_pattern_turns_grey_instead_of_aliasing() -> None:
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert np.abs(fit_picture(checkerboard, PictureShape.of(32)).astype(int) - 127.5).max() < 2


@pytest.mark.parametrize("transposed", [False, True])
def test_the_centre_is_kept(transposed: bool) -> None:
    """Of three equal stripes beside each other only the middle one is left, apart from the filter's reach."""
    image = np.zeros((30, 90, 3), dtype=np.uint8)
    for channel in range(3):
        image[:, 30 * channel : 30 * channel + 30, channel] = 255
    square = fit_picture(image.transpose(1, 0, 2) if transposed else image, PictureShape.of(30))
    np.testing.assert_array_equal(square, np.array([0, 255, 0])[:, None, None] * np.ones((3, 30, 30)))
