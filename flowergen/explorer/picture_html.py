"""Pictures as HTML: displayed enlarged, each with a download link, all embedded in the page."""

import io
import zipfile
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from flowergen.viz.html import embedded, text
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
    files = {f"{stem}_{number:02d}.png": _file(image, "PNG") for number, image in enumerate(images, start=1)}
    cells = []
    for image, (name, file), caption in zip(images, files.items(), captions, strict=True):
        words, address = text(caption), embedded(file, "image/png")
        both = _both(image, address, words, ENLARGED_ALONE_PX if len(images) == 1 else ENLARGED_PX)
        download = f' <a download="{text(name)}" href="{address}">PNG</a>' if stem else ""
        cells.append(f"<figure>{both}<figcaption>{words}{download}</figcaption></figure>")
    size = "one" if len(images) == 1 else "few" if len(images) <= 4 else "many"
    above = f'<p class="note">{text(note)}</p>' if note else ""
    if stem and len(files) > 1:
        archive = embedded(_archive(files), "application/zip")
        above += f'<p class="note"><a download="{text(stem)}.zip" href="{archive}">all as ZIP</a></p>'
    return f'<div class="pictures {size}">{above}<div class="cells">{"".join(cells)}</div></div>'


def data_url(x: Tensor) -> str:
    """Return a picture (C, H, W) in [0, 1] as a data URL of a PNG file."""
    return embedded(_file(Pictures.of(x[None]).pil()[0], "PNG"), "image/png")


def _both(image: Image.Image, address: str, words: str, height: int) -> str:
    """Return the picture twice, or once if it is large anyway."""
    factor = round(height / image.height)
    if factor < 2:
        return f'<img alt="{words}" src="{address}">'
    larger = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    enlarged = embedded(_file(larger, "JPEG"), "image/jpeg")
    return f'<img class="nearest" alt="{words}" src="{address}"><img class="bicubic" alt="{words}" src="{enlarged}">'


def _file(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, quality=JPEG_QUALITY)
    return file.getvalue()


def _archive(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return packed.getvalue()
