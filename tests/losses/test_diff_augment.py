import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowergen.losses.diff_augment import NUM_DRAWS, NUM_ZOOM_DRAWS, diff_augment, zoom

SIZE = 16  # shifts up to 2 px, squares of 8 px
SAME = 0.5  # of colour and shift
CORNER = 0.0  # of the cutout: the quarter of the square that is still in the picture
LAST = float(np.nextafter(np.float32(1), np.float32(0)))  # the largest number below 1


def pictures(num: int = 2, size: int = SIZE) -> torch.Tensor:
    """No value is 0."""
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


def draws(num: int = 2, **changes: float) -> torch.Tensor:
    names = ("brightness", "saturation", "contrast", "row", "column", "cut_row", "cut_column")
    values = dict.fromkeys(names, SAME) | {"cut_row": CORNER, "cut_column": CORNER} | changes
    return torch.tensor([list(values.values())]).expand(num, NUM_DRAWS)


def without_corner(x: torch.Tensor) -> torch.Tensor:
    """The square centred at the corner of the picture."""
    x = x.clone()
    x[:, :, : x.shape[-1] // 4, : x.shape[-1] // 4] = 0
    return x


def test_the_middle_of_all_draws_is_the_identity_but_for_the_cutout():
    torch.testing.assert_close(diff_augment(pictures(), draws()), without_corner(pictures()))


@pytest.mark.parametrize("u", [0.0, 0.3, 0.9])
def test_brightness_is_added(u: float):
    torch.testing.assert_close(diff_augment(pictures(), draws(brightness=u)), without_corner(pictures() + u - 0.5))


@pytest.mark.parametrize("u", [0.0, 0.3, 0.9])
def test_saturation_scales_the_distance_from_grey(u: float):
    """At 0 the picture is grey, at each position the mean of its colours."""
    x = pictures()
    grey = x.sum(1, keepdim=True) / 3
    expected = without_corner(grey + 2 * u * (x - grey))
    torch.testing.assert_close(diff_augment(x, draws(saturation=u)), expected)
    if u == 0:
        assert torch.allclose(expected[:, 0], expected[:, 2])


@pytest.mark.parametrize("u", [0.0, 0.3, 0.9])
def test_contrast_scales_the_distance_from_the_picture_s_own_mean(u: float):
    x = pictures()
    mean = torch.stack([picture.mean() for picture in x])[:, None, None, None]
    torch.testing.assert_close(diff_augment(x, draws(contrast=u)), without_corner(mean + (u + 0.5) * (x - mean)))


@pytest.mark.parametrize("rows", [-2, -1, 0, 2])
@pytest.mark.parametrize("columns", [-2, 0, 1])
def test_a_shift_is_a_roll_with_zeros_moving_in(rows: int, columns: int):
    """Of at most an eighth of the side, whole pixels, and rows are not columns."""
    u = draws(row=(2 - rows + 0.5) / 5, column=(2 - columns + 0.5) / 5)
    expected = torch.roll(pictures(), (rows, columns), (2, 3))
    position = torch.arange(SIZE)
    moved_in = lambda by: (position < by) | (position >= SIZE + by)  # noqa: E731
    expected[:, :, moved_in(rows)] = 0
    expected[:, :, :, moved_in(columns)] = 0
    assert torch.equal(diff_augment(pictures(), u) == 0, without_corner(expected) == 0)
    torch.testing.assert_close(diff_augment(pictures(), u), without_corner(expected))


@pytest.mark.parametrize("size", [16, 28, 33])
def test_all_shifts_are_drawn_equally_often(size: int):
    """Both ends of the uniform numbers are the furthest shifts, and nothing lies outside."""
    furthest = size // 8
    x = torch.zeros(200, 3, size, size)
    x[..., size // 2, size // 2] = 1
    u = draws(200).clone()
    u[:, 3] = torch.linspace(0, LAST, 200)
    (found,) = diff_augment(x, u)[:, 0, :, size // 2].nonzero()[:, 1:].T
    assert len(found) == 200
    counts = torch.bincount(size // 2 + furthest - found)
    assert len(counts) == 2 * furthest + 1
    assert counts.min() >= 200 // (2 * furthest + 1)


@pytest.mark.parametrize("size", [16, 28, 64])
@pytest.mark.parametrize(("u", "side"), [(0.0, 0.25), (SAME, 0.5), (LAST, 0.25)])
def test_the_cutout_is_a_square_of_half_the_side(u: float, side: float, size: int):
    """A quarter of the picture in its middle, a quarter of that at a corner; the rest is untouched."""
    x = pictures(size=size)
    out = diff_augment(x, draws(cut_row=u, cut_column=u))
    cut = (out == 0).all(1)
    assert cut.sum().item() == 2 * (side * size) ** 2
    rows, columns = cut[0].any(1), cut[0].any(0)
    assert rows.sum() == columns.sum() == side * size
    torch.testing.assert_close(out.movedim(1, -1)[~cut], x.movedim(1, -1)[~cut])


def test_the_cutout_s_row_is_not_its_column():
    cut = (diff_augment(pictures(), draws(cut_row=LAST, cut_column=SAME))[0] == 0).all(0)
    assert cut[SIZE * 3 // 4 :, SIZE // 4 : SIZE * 3 // 4].all()
    assert cut.sum() == SIZE**2 / 8


@pytest.mark.parametrize("u", [0.0, LAST])
@pytest.mark.parametrize("size", [*range(28, 40), 64, 100, 128, 255, 256])
def test_the_first_and_last_uniform_numbers_stay_in_the_picture(u: float, size: int):
    assert diff_augment(torch.ones(1, 3, size, size), torch.full((1, NUM_DRAWS), u)).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 32, 16), (1, 20, 12)])
def test_shifts_and_cutouts_follow_each_side_of_a_rectangle(shape: tuple[int, int, int]):
    """Shifted as far as it goes, a grey or colour rectangle loses an eighth of each side, and its middle is cut out."""
    _, height, width = shape
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) + 0.1
    u = draws(row=LAST, column=LAST, cut_row=0.5, cut_column=0.5)
    expected = torch.zeros_like(x)
    expected[:, :, : height - height // 8, : width - width // 8] = x[:, :, height // 8 :, width // 8 :]
    top, left = (height + 1) // 2 - height // 4, (width + 1) // 2 - width // 4
    expected[:, :, top : top + 2 * (height // 4), left : left + 2 * (width // 4)] = 0
    torch.testing.assert_close(diff_augment(x, u), expected)


@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 32, 16)])
def test_zoom_enlarges_a_quarter_of_a_rectangle(shape: tuple[int, int, int]):
    _, height, width = shape
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    quarter = x[:, :, height - height // 2 :, : width // 2]
    expected = F.interpolate(quarter, size=(height, width), mode="bilinear", align_corners=False)
    torch.testing.assert_close(zoom(x, torch.tensor([[LAST, 0.0, 0.0]])), expected)
    assert torch.equal(zoom(x, torch.tensor([[LAST, 0.0, 0.5]])), x)


def test_gradients_pass():
    """It is linear in x: the gradient equals that of the matrix found by one picture a pixel, and what is cut out has none."""
    u = torch.rand(1, NUM_DRAWS, generator=torch.Generator().manual_seed(3))
    pixels = torch.eye(3 * 64).view(-1, 3, 8, 8)
    constant = diff_augment(torch.zeros(1, 3, 8, 8), u)
    matrix = (diff_augment(pixels, u.expand(len(pixels), -1)) - constant).flatten(1)  # (in, out)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(4)).requires_grad_()
    direction = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((diff_augment(x, u) * direction).sum(), x)
    torch.testing.assert_close(gradient.flatten(), matrix @ direction.flatten(), rtol=1e-4, atol=1e-5)
    assert gradient.abs().max() > 0.1
    assert (matrix.abs().sum(0) == 0).view(3, 8, 8).sum() >= 3 * 4


def test_it_is_a_function_of_its_draws_alone_picture_by_picture():
    torch.manual_seed(0)
    x, u = pictures(4), torch.rand(4, NUM_DRAWS)
    state = torch.get_rng_state()
    out = diff_augment(x, u)
    assert torch.equal(out, diff_augment(x, u))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(diff_augment(x[2:3], u[2:3]), out[2:3])
    changed = x.clone()
    changed[1] += 1
    assert torch.equal(diff_augment(changed, u)[[0, 2, 3]], out[[0, 2, 3]])
    assert not torch.equal(diff_augment(x, u.roll(1, 0)), out)


def test_a_constant_picture_keeps_its_grey():
    """Neither saturation nor contrast have anything to scale."""
    x = torch.full((1, 3, SIZE, SIZE), 0.3)
    torch.testing.assert_close(diff_augment(x, draws(1, saturation=0.9, contrast=0.1)), without_corner(x))


def test_half_precision_comes_out_in_float32():
    u = draws(brightness=0.7)
    assert diff_augment(pictures().half(), u).dtype == torch.float32
    assert torch.equal(diff_augment(pictures().half(), u), diff_augment(pictures().half().float(), u))


def test_the_padding_is_that_of_torch():
    """The furthest shift down and right, against F.pad."""
    out = diff_augment(pictures(), draws(row=0.0, column=0.0))
    torch.testing.assert_close(out, without_corner(F.pad(pictures(), [2, 0, 2, 0])[:, :, :SIZE, :SIZE]))
    assert math.isclose((out != 0).all(1)[0].sum().item(), (SIZE - 2) ** 2 - 2**2)


@pytest.mark.parametrize("size", [16, 28, 33])
@pytest.mark.parametrize(("row", "column"), [(0.0, LAST), (LAST, 0.0), (0.3, 0.8)])
def test_zoom_enlarges_a_quarter_of_half_of_the_pictures(size: int, row: float, column: float):
    """Against slices and torch's enlargement; the first and last uniform numbers are the first and last quarter."""
    x, half = pictures(4, size), size // 2
    u = torch.tensor([[row, column, 0.0], [row, column, 0.5], [column, row, 0.49], [column, row, LAST]])
    out = zoom(x, u)
    assert torch.equal(out[[1, 3]], x[[1, 3]])
    for number, at in ((0, (row, column)), (2, (column, row))):
        top, left = (min(int(v * (size - half + 1)), size - half) for v in at)
        quarter = x[number : number + 1, :, top : top + half, left : left + half]
        expected = F.interpolate(quarter, (size, size), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(out[number], expected)


def test_zoom_passes_gradients_to_the_quarter_alone():
    x = pictures(1).requires_grad_()
    zoom(x, torch.tensor([[0.0, LAST, 0.0]])).sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :, : SIZE // 2, SIZE // 2 :] > 0).all()
    assert x.grad.count_nonzero() == 3 * (SIZE // 2) ** 2
    torch.testing.assert_close(x.grad.sum(), torch.tensor(3.0 * SIZE**2))


def test_zoom_makes_a_pattern_of_single_pixels_coarse():
    """A checkerboard has no energy at a stride of two, and some once it is enlarged."""
    board = ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 * 2.0 - 1).expand(1, 3, SIZE, SIZE)
    assert F.avg_pool2d(board, 2).abs().max() == 0
    assert F.avg_pool2d(zoom(board, torch.zeros(1, NUM_ZOOM_DRAWS)), 2).square().mean() > 0.05
