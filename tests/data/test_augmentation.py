import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as oracle

from flowergen.data.augmentation import HUE, color_jitter, crop_boxes, jitter_factors, resized_crop
from flowergen.randomness import generator, uniform

IDENTITY = (1.0, 1.0, 1.0, 0.0)


def pictures(num: int, width: int = 24) -> torch.Tensor:
    """Noise on patches, with grey, black, white and pure colours among the pixels."""
    x = uniform((num, 3, 24, width), seed=0, step=0, purpose="pictures")
    x[:, :, :4, :4] = x[:, :1, :4, :4]
    x[:, :, 4] = 0
    x[:, :, 5] = 1
    x[:, 0, 6], x[:, 1:, 6] = 1, 0
    x[:, 1, 7] = x[:, 0, 7]  # two channels are the largest at once
    return x


FUNCTIONS = (oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue)


@pytest.mark.parametrize("which", range(4), ids=lambda which: FUNCTIONS[which].__name__)
def test_each_colour_operation_is_torchvisions_on_each_picture_alone(which: int) -> None:
    x = pictures(9)
    values = torch.linspace(-0.5, 0.5, 9) if which == 3 else torch.linspace(0, 2, 9)
    factors = torch.tensor(IDENTITY).repeat(9, 1)
    factors[:, which] = values
    expected = torch.stack([FUNCTIONS[which](picture, value.item()) for picture, value in zip(x, values, strict=True)])
    torch.testing.assert_close(color_jitter(x, factors), expected, rtol=0, atol=2e-6)


def test_the_four_together_are_torchvisions_in_this_order_and_stay_pictures() -> None:
    x, u = pictures(32), generator(0, 0, "u").random((32, 4))
    factors = torch.from_numpy(jitter_factors(u, 1.0))
    expected = []
    for picture, values in zip(x, factors.tolist(), strict=True):
        for function, value in zip(FUNCTIONS, values, strict=True):
            picture = function(picture, value)
        expected.append(picture)
    found = color_jitter(x, factors)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


def test_grey_has_brightness_and_contrast_but_neither_saturation_nor_hue() -> None:
    x, factors = pictures(32)[:, :1], torch.from_numpy(jitter_factors(generator(0, 0, "u").random((32, 4)), 1.0))
    expected = [
        oracle.adjust_contrast(oracle.adjust_brightness(picture, brightness), contrast)
        for picture, (brightness, contrast, _, _) in zip(x, factors.tolist(), strict=True)
    ]
    found = color_jitter(x, factors)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-6)
    factors[:, 2:] = torch.tensor(IDENTITY[2:])
    torch.testing.assert_close(color_jitter(x, factors), found, rtol=0, atol=0)


def test_factors_fill_their_ranges() -> None:
    """[1 - s, 1 + s], and a tenth of the strength in turns of hue; none at strength 0."""
    u = generator(0, 0, "u").random((4000, 4))
    factors = jitter_factors(u, 0.4)
    np.testing.assert_allclose(factors.min(0), [0.6, 0.6, 0.6, -0.4 * HUE], atol=1e-3)
    np.testing.assert_allclose(factors.max(0), [1.4, 1.4, 1.4, 0.4 * HUE], atol=1e-3)
    np.testing.assert_array_equal(jitter_factors(u[:1], 0), [IDENTITY])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("width", [24, 40])
def test_a_crop_is_torchvisions_of_each_picture_alone(antialias: bool, width: int) -> None:
    """With antialiasing or without: it only ever enlarges."""
    x = pictures(40, width)
    boxes = crop_boxes(generator(0, 0, "u").random((40, 4)), (0.05, 1), 24, width)
    expected = [
        oracle.resized_crop(picture, *map(int, box), [24, width], antialias=antialias)
        for picture, box in zip(x, boxes, strict=True)
    ]
    torch.testing.assert_close(resized_crop(x, torch.from_numpy(boxes)), torch.stack(expected), rtol=0, atol=2e-5)


def test_a_crop_takes_nothing_from_beside_its_box() -> None:
    x = torch.ones(1, 3, 24, 24)
    x[:, :, 5:14, 3:10] = 0.25
    torch.testing.assert_close(resized_crop(x, torch.tensor([[5.0, 3, 9, 7]])), torch.full_like(x, 0.25), rtol=0, atol=1e-5)


def test_the_whole_picture_as_a_crop_is_the_picture() -> None:
    x = pictures(2)
    torch.testing.assert_close(resized_crop(x, torch.tensor([[0.0, 0, 24, 24]] * 2)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height_px", "width_px"), [(512, 512), (480, 640), (640, 400)])
def test_boxes_lie_within_the_picture_and_have_the_areas_and_ratios_that_were_asked_for(height_px: int, width_px: int) -> None:
    boxes = crop_boxes(generator(0, 0, "u").random((5000, 4)), (0.3, 0.9), height_px, width_px)
    top, left, height, width = boxes.T
    for start, extent, side in ((top, height, height_px), (left, width, width_px)):
        assert start.min() == 0
        assert (start + extent).max() == side
        np.testing.assert_array_equal(start, np.floor(start))
        np.testing.assert_array_equal(extent, np.rint(extent))
    area, ratio = height * width / (height_px * width_px), width / height * (height_px / width_px)
    np.testing.assert_allclose([area.min(), area.max(), area.mean()], [0.3, 0.9, 0.6], atol=0.01)
    np.testing.assert_allclose([ratio.min(), ratio.max()], [3 / 4, 4 / 3], rtol=0.01)
    np.testing.assert_allclose(np.log(ratio).mean(), 0, atol=0.01)


def test_the_sides_of_a_box_are_those_of_squares() -> None:
    """Of the same numbers: top and height of squares of the picture's height, left and width of those of its width."""
    u = generator(0, 0, "u").random((500, 4))
    boxes, low, wide = (crop_boxes(u, (0.1, 1), *size) for size in ((24, 48), (24, 24), (48, 48)))
    np.testing.assert_array_equal(boxes[:, ::2], low[:, ::2])
    np.testing.assert_array_equal(boxes[:, 1::2], wide[:, 1::2])


def test_boxes_of_squares_are_those_of_earlier_versions() -> None:
    """Computed by hand from the formula: a quarter of the area at its middle ratio, 1, and at its widest, 4 / 3."""
    u = np.array([[0.0, 0.5, 0.0, 0.999], [0.0, 0.999999, 0.5, 0.5]])
    boxes = crop_boxes(u, (0.25, 1), 64, 64)
    np.testing.assert_array_equal(boxes, [[0, 32, 32, 32], [18, 14, 28, 37]])


def test_small_boxes_are_distributed_as_torchvisions() -> None:
    """Where every ratio fits, torchvision never draws again: the same means and spreads of all four sides."""
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(torch.empty(3, 256, 256), [0.1, 0.5], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = crop_boxes(generator(0, 0, "u").random((4000, 4)), (0.1, 0.5), 256, 256)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=4)  # 3.5 standard errors of the tops and lefts' difference
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)
