"""Matplotlib figures as files."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowergen.viz.grids import write_png


def write_figure(png: str | Path, figure: Figure) -> None:
    """Draw a figure and write it as a PNG file, see ``write_png``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    write_png(png, np.asarray(canvas.buffer_rgba())[..., :3])
