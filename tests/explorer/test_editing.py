"""Edit: uploads of any kind, and the edits of ``LoadedModel``."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.errors import UserError
from flowergen.explorer import editing
from flowergen.explorer.model import ExplorerModel

pytestmark = pytest.mark.slow
OPTIONS = {"steps": 4, "guidance_scale": 1.5}


def bomb(side: int = 30_000) -> bytes:
    """A PNG file of a few bytes that claims to hold 900 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def x(diffusion: ExplorerModel, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    path = tmp_path_factory.mktemp("upload") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return editing.uploaded(diffusion, str(path))


def test_an_upload_is_fitted_as_the_model_reads_it(diffusion: ExplorerModel, x: Tensor, tmp_path: Path) -> None:
    assert x.shape == (1, 3, 32, 32)
    Image.fromarray(np.full((90, 40), 200, dtype=np.uint8)).save(tmp_path / "grey.webp")
    assert torch.equal(editing.uploaded(diffusion, str(tmp_path / "grey.webp")), diffusion.model.read(tmp_path / "grey.webp"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.png", bomb(), "bomb"),
        ("text.png", b"no picture", "not a picture"),
        ("empty.jpg", b"", "empty file"),
        ("page.svg", b"<svg onload=alert(1)>", "not a picture"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n(a) run\n", "not a picture"),
        ("cut.png", bomb(40)[:60], ""),
        ("../../<b>\n.png", b"GIF89a", ""),
    ],
)
def test_hostile_uploads_are_refused(diffusion: ExplorerModel, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / Path(name).name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"this file cannot be read as a picture: .*{words}") as raised:
        editing.uploaded(diffusion, str(path))
    assert str(tmp_path) not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", [None, "", 3, ["a"], {"path": "/etc/passwd"}])
def test_no_file_at_all(diffusion: ExplorerModel, path: Any) -> None:
    with pytest.raises(UserError, match="upload a picture first"):
        editing.uploaded(diffusion, path)


def test_edits_are_those_of_the_model(diffusion: ExplorerModel, x: Tensor) -> None:
    model = diffusion.model
    assert torch.equal(editing.reconstruct(diffusion, x), model.decode(model.encode(x).mean))
    assert torch.equal(editing.vary(diffusion, x, 2, 1.0, 5), model.vary(x, 2, 10.0, 5))
    assert torch.equal(editing.vary(diffusion, x, 2, None, 5), model.vary(x, 2, None, 5))
    edited = editing.img2img(diffusion, x, 0.5, [1, 0], 2, 3, OPTIONS)
    assert torch.equal(edited, model.img2img(x, 0.5, [1, 0], 2, 3, steps=4, guidance_scale=1.5))
    left = torch.arange(32).expand(32, 32) < 16
    painted = editing.inpaint(diffusion, x, "".join("1" if known else "0" for known in left.flatten()), [], 2, 3, OPTIONS)
    assert torch.equal(painted, model.inpaint(x, left, None, 2, 3, steps=4, guidance_scale=1.5))
    assert torch.equal(painted[..., 16:], x[..., 16:].expand(2, -1, -1, -1))
    assert not torch.equal(painted[..., :16], x[..., :16].expand(2, -1, -1, -1))


def test_sliders_move_along_the_directions(diffusion: ExplorerModel, x: Tensor) -> None:
    known, model = diffusion.directions, diffusion.model
    num = len(known.directions)
    assert torch.allclose(editing.traverse(diffusion, x, [0] * num), editing.reconstruct(diffusion, x), atol=1e-6)
    moved = editing.traverse(diffusion, x, [0, 2, *[0] * (num - 2)])
    z = model.encode(x).mean + (2 * known.std[1] * known.directions[1]).view(1, *diffusion.module.latent_shape)
    assert torch.allclose(moved, model.decode(z), atol=1e-5)
    assert (known.std.diff() <= 1e-6).all()  # the largest first
    z = diffusion.points[0].flatten(1)
    assert torch.allclose(known.shares, known.std.square() / z.var(0).sum(), rtol=1e-3)


@pytest.mark.parametrize("mask", ["", "0" * 1024, None, 7, ["1"]])
def test_an_unpainted_mask_is_a_sentence(mask: Any) -> None:
    with pytest.raises(UserError, match="paint over the part"):
        editing.mask_of(mask, 32, 32)


@pytest.mark.parametrize("mask", ["1" * 1023, "1" * 4096, "1" + "x" * 1023])
def test_a_mask_of_another_picture_is_a_sentence(mask: Any) -> None:
    with pytest.raises(UserError, match="does not belong to this picture"):
        editing.mask_of(mask, 32, 32)


def test_mistakes_are_one_line_errors(diffusion: ExplorerModel, x: Tensor) -> None:
    wrong = {
        "upload a picture first": lambda: editing.vary(diffusion, None, 2, None, 0),
        "number of pictures": lambda: editing.vary(diffusion, x, 0, None, 0),
        "power of ten must be a number from -3 to 5": lambda: editing.vary(diffusion, x, 1, 300, 0),
        "Strength": lambda: editing.img2img(diffusion, x, 1.5, [], 1, 0, OPTIONS),
        "more than 16": lambda: editing.img2img(diffusion, x, 0.5, [0, 1], 9, 0, OPTIONS),
        "A slider": lambda: editing.traverse(diffusion, x, [math.nan]),
        "Steps": lambda: editing.inpaint(diffusion, x, "1" * 1024, [], 1, 0, OPTIONS | {"steps": 1e9}),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words):
            call()
