"""Pieces of HTML pages that open without a network or a server."""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

RELOAD_SECONDS = 30
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for files that it refuses
SHOWN_PX = 128  # side at which small pictures are shown, at least
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
    """A whole page.

    Args:
        title: plain text.
        parts: HTML.
        reloads: every ``RELOAD_SECONDS``.
    """
    refresh = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if reloads else ""
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}{refresh}<title>{text(title)}</title><style>{STYLE}</style>'
    body = ["<main>", f"<h1>{text(title)}</h1>", *parts, "</main>"]
    if any("<img" in part for part in parts):
        body.insert(
            0, '<input type="checkbox" id="pixels"><label for="pixels">single pixels instead of smooth pictures</label>'
        )
    return "\n".join(["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""])


def text(words: str) -> str:
    """Plain text, escaped."""
    return html.escape(words)


def table(rows: Sequence[Sequence[str]], styles: Sequence[str] = (), words: bool = False) -> str:
    """Rows of cells, which are HTML; the first row is the head.

    Args:
        rows: all of the same length.
        styles: CSS classes of the rows after the first.
        words: whether the last column is text, and no number.
    """
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in rows[0]) + "</tr>"]
    for row, style in zip(rows[1:], styles or [""] * len(rows), strict=False):
        lines.append(f'<tr class="{style}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table class="{"words" if words else ""}">' + "\n".join(lines) + "</table></div>"


def figure(source: str, caption: str, width_px: int | None = None) -> str:
    """A picture with its caption, loaded when it comes into view.

    Args:
        source: URL.
        caption: plain text.
        width_px: at which it is shown; a narrow window scrolls it. None for its own, or the window's if that is less.
    """
    size = f'width="{width_px}"' if width_px else 'style="max-width: 100%"'
    image = f'<img src="{source}" alt="{text(caption)}" {size} loading="lazy">'
    return f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>"


def embedded(content: bytes, kind: str) -> str:
    """The URL that holds a file itself.

    Args:
        content: of the file.
        kind: its media type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def linked(path: Path, folder: Path) -> str:
    """The URL of a file: from the page's folder, or absolute where the file lies elsewhere."""
    if path.is_relative_to(folder):
        return quote(os.fsencode(path.relative_to(folder).as_posix()))
    return path.absolute().as_uri()


def pictures(paths: Sequence[Path], folder: Path, image_size: int) -> str:
    """Small pictures side by side, as many in a line as fit, each at least ``SHOWN_PX`` wide.

    Args:
        paths: of the pictures, in order.
        folder: of the page.
        image_size: side of each, px.
    """
    side = image_size * max(1, -(-SHOWN_PX // image_size))
    images = (f'<img src="{linked(path, folder)}" alt="{text(path.stem)}" width="{side}" height="{side}">' for path in paths)
    return f"<div>{''.join(images)}</div>"


def enlarged(path: Path, folder: Path, caption: str, image_size: int) -> str:
    """A figure of a grid of small pictures, each at least ``SHOWN_PX`` wide; empty where the file is damaged or huge.

    Args:
        path: of the grid.
        folder: of the page.
        caption: plain text.
        image_size: side of a picture in the grid, px.
    """
    try:
        with Image.open(path) as image:
            width = image.width
    except UNREADABLE:
        return ""
    return figure(linked(path, folder), caption, width * max(1, -(-SHOWN_PX // image_size)))
