"""Pictures as HTML: displayed enlarged, each with a download link, all embedded in the page."""

import base64
import io
import zipfile
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from flowergen.viz.html import text
from flowergen.viz.pictures import Pictures

ENLARGED_PX = 256  # smallest height of the bicubic enlargement of one of several pictures
ENLARGED_ALONE_PX = 512  # the same for a single picture
JPEG_QUALITY = 95  # quality of the enlargement; the download is a PNG file of the picture itself


def figures(x: Tensor, captions: Sequence[str], stem: str | None = None, note: str = "") -> str:
    """Return pictures side by side, each both as its own pixels and enlarged bicubically; the page shows one of the two.

    Args:
        x: (N, C, H, W) in [0, 1].
        captions: plain text below each of them.
        stem: beginning of the names of the downloaded files; None for no download links.
        note: plain text above them.
    """
    images = Pictures.of(x).pil()
    files = [_file(image, "PNG") for image in images]
    cells = []
    for number, (image, file, caption) in enumerate(zip(images, files, captions, strict=True), start=1):
        words = text(caption)
        if stem:
            words += f' <a download="{text(stem)}_{number:02d}.png" href="{_data("image/png", file)}">PNG</a>'
        cells.append(f"<figure>{_both(image, file, caption, len(images) == 1)}<figcaption>{words}</figcaption></figure>")
    size = "one" if len(images) == 1 else "few" if len(images) <= 4 else "many"
    above = f'<p class="note">{text(note)}</p>' if note else ""
    if stem and len(files) > 1:
        archive = _data("application/zip", _archive(stem, files))
        above += f'<p class="note"><a download="{text(stem)}.zip" href="{archive}">all as ZIP</a></p>'
    return f'<div class="pictures {size}">{above}<div class="cells">{"".join(cells)}</div></div>'


def data_url(x: Tensor) -> str:
    """Return a picture (C, H, W) in [0, 1] as a data URL of a PNG file."""
    return _data("image/png", _file(Pictures.of(x[None]).pil()[0], "PNG"))


def _both(image: Image.Image, file: bytes, caption: str, alone: bool) -> str:
    """Return the picture twice, or once if it is large anyway."""
    factor = round((ENLARGED_ALONE_PX if alone else ENLARGED_PX) / image.height)
    own = f'alt="{text(caption)}" src="{_data("image/png", file)}"'
    if factor < 2:
        return f"<img {own}>"
    size = (factor * image.width, factor * image.height)
    enlarged = _data("image/jpeg", _file(image.resize(size, Image.Resampling.BICUBIC), "JPEG"))
    return f'<img class="nearest" {own}><img class="bicubic" alt="{text(caption)}" src="{enlarged}">'


def _file(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, quality=JPEG_QUALITY)
    return file.getvalue()


def _data(kind: str, file: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def _archive(stem: str, files: Sequence[bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, file in enumerate(files, start=1):
            archive.writestr(f"{stem}_{number:02d}.png", file)
    return packed.getvalue()
