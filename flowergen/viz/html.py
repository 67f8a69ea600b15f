"""Building blocks of HTML pages that open without a network or a server."""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from flowergen.picture_shape import PictureShape

RELOAD_SECONDS = 30
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # raised by Pillow for files that it rejects
STYLE = """
body { font-family: sans-serif; margin: 1.5em auto; padding: 0 1em; max-width: 1250px; color: #222 }
table { border-collapse: collapse } td, th { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, .words :last-child { text-align: left } .failed { color: #b00 } .best { font-weight: bold }
.wide { overflow-x: auto } pre { background: #f4f4f4; padding: .7em; overflow-x: auto }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; max-width: 100%; overflow-x: auto }
.row { display: flex; align-items: center; margin-bottom: 2px }
.row > span { flex: 0 0 9em; padding-right: 1em; text-align: right } .row > div { display: flex; flex-wrap: wrap; gap: 2px }
@media (max-width: 700px) {
  .row { display: block; margin-bottom: 1em } .row > span { display: block; text-align: left }
}
figcaption { font-size: smaller; color: #555 } summary { cursor: pointer; margin: 1em 0 }
#pixels:checked ~ main img { image-rendering: pixelated }
"""


def page(title: str, parts: Sequence[str], reloads: bool = False) -> str:
    """Return a complete page of HTML parts under a title in plain text; it can reload itself every ``RELOAD_SECONDS``."""
    refresh = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if reloads else ""
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}{refresh}<title>{text(title)}</title><style>{STYLE}</style>'
    toggle = '<input type="checkbox" id="pixels"><label for="pixels">show individual pixels, without smoothing</label>'
    toggles = [toggle] if any("<img" in part for part in parts) else []
    body = [*toggles, "<main>", f"<h1>{text(title)}</h1>", *parts, "</main>"]
    return "\n".join(["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""])


def text(words: str) -> str:
    """Escape plain text."""
    return html.escape(words)


def table(rows: Sequence[Sequence[str]], styles: Sequence[str] = (), words: bool = False) -> str:
    """Return a table of HTML cells; the first row is the header.

    ``styles`` are the CSS classes of the other rows; with ``words``, the last column is text rather than numbers.
    """
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in rows[0]) + "</tr>"]
    for row, style in zip(rows[1:], styles or [""] * len(rows), strict=False):
        lines.append(f'<tr class="{style}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table class="{"words" if words else ""}">' + "\n".join(lines) + "</table></div>"


def figure(source: str, caption: str, width_px: int | None = None) -> str:
    """Return a lazily loaded picture, given by its URL, with a caption in plain text.

    With ``width_px``, a narrow window scrolls; without, the width is the picture's own, or the window's if smaller.
    """
    size = f'width="{width_px}"' if width_px else 'style="max-width: 100%"'
    image = f'<img src="{source}" alt="{text(caption)}" {size} loading="lazy">'
    return f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>"


def embedded(content: bytes, kind: str) -> str:
    """Return a data URL with the content of a file; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def linked(path: Path, folder: Path) -> str:
    """Return the URL of a file: relative if it is in the page's folder, otherwise absolute."""
    if path.is_relative_to(folder):
        return quote(os.fsencode(path.relative_to(folder).as_posix()))
    return path.absolute().as_uri()


def pictures(paths: Sequence[Path], folder: Path, shape: PictureShape) -> str:
    """Return small pictures for a page in ``folder``, as many per line as fit, enlarged by ``PictureShape.enlargement``."""
    factor = shape.enlargement
    size = f'width="{factor * shape.width}" height="{factor * shape.height}"'
    images = (f'<img src="{linked(path, folder)}" alt="{text(path.stem)}" {size}>' for path in paths)
    return f"<div>{''.join(images)}</div>"


def enlarged(path: Path, folder: Path, caption: str, shape: PictureShape | None) -> str:
    """Return a figure of a grid, enlarged by ``PictureShape.enlargement``; empty if the file is damaged or huge.

    Args:
        path: file of the grid.
        folder: folder of the page.
        caption: plain text.
        shape: (C, H, W) of each picture in the grid; None to show the file in its own size.
    """
    try:
        with Image.open(path) as image:
            width = image.width
    except UNREADABLE:
        return ""
    return figure(linked(path, folder), caption, width * (shape.enlargement if shape else 1))
