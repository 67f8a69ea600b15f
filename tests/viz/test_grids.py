import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.viz.grids import captioned, comparison_grid, enlarged, image_grid, labelled_grid, write_png


def to_uint8(image):
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("gap_px", [0, 2])
def test_every_picture_is_where_reading_order_puts_it(gap_px):
    """Cell (r, c) holds picture r * columns + c to the bit, and everything else is white."""
    images = torch.rand(7, 3, 5, 6)
    grid = image_grid(images, columns=3, gap_px=gap_px)
    assert grid.shape == (3 * (5 + gap_px) - gap_px, 3 * (6 + gap_px) - gap_px, 3)
    assert grid.dtype == np.uint8
    rest = np.ones(grid.shape[:2], dtype=bool)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        cell = np.s_[row * (5 + gap_px) :, column * (6 + gap_px) :]
        np.testing.assert_array_equal(grid[cell][:5, :6], to_uint8(image))
        rest[cell][:5, :6] = False
    assert rest.any()
    assert (grid[rest] == 255).all()


def test_values_are_rounded_and_clamped():
    """0.5 / 255 steps round to the nearest, and a decoder's overshoot does not wrap around."""
    values = torch.tensor([-0.5, 0.0, 99.6 / 255, 1.0, 1.5])
    grid = image_grid(values.reshape(5, 1, 1, 1).expand(5, 3, 1, 1), columns=5, gap_px=0)
    assert grid[0, :, 0].tolist() == [0, 0, 100, 255, 255]


def test_a_grid_is_no_wider_than_its_pictures():
    """Three pictures in eight columns make three columns."""
    assert image_grid(torch.rand(3, 3, 4, 4, requires_grad=True), columns=8, gap_px=1).shape == (4, 14, 3)


def test_reconstructions_stand_below_their_pictures():
    """Rows alternate real, reconstructed, also in the last pair, which is shorter."""
    x, x_hat = torch.rand(2, 5, 3, 4, 4)
    grid = comparison_grid(x, x_hat, columns=3, gap_px=1)
    assert grid.shape == (4 * 5 - 1, 3 * 5 - 1, 3)
    for number in range(5):
        pair, column = divmod(number, 3)
        for row, images in ((2 * pair, x), (2 * pair + 1, x_hat)):
            cell = grid[5 * row :, 5 * column :][:4, :4]
            np.testing.assert_array_equal(cell, to_uint8(images[number]))
    assert (grid[10:, 10:] == 255).all()


def test_one_row_of_each_when_the_pictures_fit():
    """Eight pictures, eight columns: two rows."""
    x = torch.rand(8, 3, 4, 4)
    assert comparison_grid(x, x, columns=8, gap_px=2).shape == (10, 46, 3)


def test_a_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """It reads back bit-equal, makes its folder, and a write that fails leaves the old file."""
    path = tmp_path / "images" / "grid.png"
    first = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    write_png(path, first)

    def break_half_way(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", break_half_way)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, 255 - first)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), first)


def test_each_label_stands_in_front_of_its_row_of_pictures():
    """Rows may differ in length; right of the margin the grid is that of the pictures, to the bit."""
    first, second = torch.rand(3, 3, 24, 20), torch.rand(1, 3, 24, 20)
    grid = labelled_grid([("0 daisy", first), ("12 a much longer name", second)], gap_px=10)
    margin = grid.shape[1] - (3 * 30 - 10)
    assert (grid.shape[0], grid.dtype) == (2 * 34 - 10, np.uint8)
    white = torch.ones(2, 3, 24, 20)
    np.testing.assert_array_equal(grid[:, margin:], image_grid(torch.cat((first, second, white)), columns=3, gap_px=10))
    dark = [(grid[34 * row : 34 * row + 24, :margin].min(axis=-1) < 128) for row in (0, 1)]
    widths = [int(np.ptp(np.flatnonzero(rows.any(0)))) for rows in dark]
    assert 0 < widths[0] < widths[1], "the margin is as wide as the longest label"
    for rows in dark:
        middle = np.flatnonzero(rows.any(1)).mean()
        assert abs(middle - 12) < 4, "in the middle of its row"
        assert margin - 10 < np.flatnonzero(rows.any(0)).max() < margin - 2, "up to the pictures, and not into them"
    assert (grid[24:34] == 255).all()


def test_labels_of_any_script_and_of_none_fit():
    """Small pictures keep a label that can be read; a script that the font lacks does no harm."""
    grid = labelled_grid([("", torch.rand(1, 3, 8, 8)), ("日本 ünïcödé \n x", torch.rand(2, 3, 8, 8))])
    assert grid.shape[0] == 18
    only = torch.rand(2, 3, 8, 8)
    bare = labelled_grid([("", only)])
    np.testing.assert_array_equal(bare[:, -18:], image_grid(only, 2))


def test_pictures_are_enlarged_and_labels_are_not():
    """Each pixel of the grid becomes a square of its colour; a label stands in the middle of its row, as sharp as before."""
    rows = [("0 daisy", torch.rand(3, 3, 8, 6)), ("1 rose", torch.rand(1, 3, 8, 6))]
    plain, grid = labelled_grid(rows), labelled_grid(rows, factor=16)
    margin = grid.shape[1] - 16 * (3 * 8 - 2)
    assert grid.shape[0] == 16 * plain.shape[0]
    np.testing.assert_array_equal(grid[:, margin:][::16, ::16], plain[:, -22:])
    np.testing.assert_array_equal(grid[:, margin:], enlarged(plain[:, -22:], 16))
    for row in (0, 1):
        dark = grid[160 * row : 160 * row + 128, :margin].min(axis=-1) < 128
        assert abs(np.flatnonzero(dark.any(1)).mean() - 64) < 9
        assert np.count_nonzero(dark.any(1)) < 32


@pytest.mark.parametrize(("width", "num_lines"), [(700, 1), (300, 2), (30, 12)])
def test_a_caption_stands_below_the_grid_in_as_many_lines_as_its_width_asks_for(width, num_lines):
    """The grid is as it was; a word wider than it makes the picture wider, and no letter is cut off."""
    grid = np.full((20, width, 3), 77, dtype=np.uint8)
    words = "latents from a mixture of 16 Gaussians fitted to 1,024 training latents"
    picture = captioned(grid, words)
    np.testing.assert_array_equal(picture[:20, :width], grid)
    assert (picture[:20, width:] == 255).all()
    assert (picture.shape[1] == width) == (num_lines < 3)
    dark = (picture[20:] < 128).all(axis=-1)  # (H, W)
    assert not dark[:, [0, -1]].any()
    assert not dark[[0, -1]].any()
    rows = dark.any(axis=1)
    assert np.count_nonzero(rows[1:] & ~rows[:-1]) == num_lines, "lines with white between them"


def test_grey_pictures_make_grids_in_colour_with_equal_values():
    x = torch.rand(5, 1, 4, 6)
    for grid in (
        lambda images: image_grid(images, columns=3),
        lambda images: comparison_grid(images, images.flip(0), columns=3),
        lambda images: labelled_grid([("a", images), ("b", images[:2])]),
    ):
        np.testing.assert_array_equal(grid(x), grid(x.repeat(1, 3, 1, 1)))


def test_a_file_of_a_grey_picture_is_grey(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 1), dtype=np.uint8)
    write_png(tmp_path / "grey.png", picture)
    with Image.open(tmp_path / "grey.png") as image:
        assert (image.mode, image.size) == ("L", (64, 48))
        np.testing.assert_array_equal(np.asarray(image), picture[..., 0])
