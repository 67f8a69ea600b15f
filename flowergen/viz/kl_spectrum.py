"""Plot of the KL divergence of each latent dimension."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from flowergen.viz.figures import write_figure

MIN_NATS = 1e-5  # smallest value drawn, in nats; a dimension equal to the prior has 0
MAX_COLORS = 10  # maximum number of channels with separate colours


def draw_kl_spectrum(png: str | Path, kl: Tensor, std: Tensor, silent_nats: float) -> None:
    """Plot the KL of each dimension, sorted, next to its standard deviation over all pictures and draws, in the same order.

    Args:
        png: the file to write, atomically.
        kl: (C, h, w) in nats, averaged over pictures.
        std: (C, h, w) of the aggregate posterior; the prior has 1.
        silent_nats: threshold below which a dimension counts as silent, drawn as a line.
    """
    order = kl.flatten().argsort(descending=True, stable=True)
    rank = np.arange(len(order))
    channel = torch.arange(len(kl)).repeat_interleave(kl[0].numel())[order].numpy()
    by_channel = kl[0].numel() > 1 and 1 < len(kl) <= MAX_COLORS
    color = np.array([colormaps["tab10"](c if by_channel else 0) for c in channel])

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="tight")
    left, right = figure.subplots(1, 2)
    nats = kl.flatten()[order].clamp_min(MIN_NATS).numpy()
    size = 24 if len(order) <= 64 else 8
    widths = std.flatten()[order].numpy()
    left.scatter(rank, nats, s=size, c=color, linewidths=0)
    left.axhline(silent_nats, color="black", linestyle="--", linewidth=1)
    left.annotate(f"{silent_nats} nats", (0.01, silent_nats), xycoords=("axes fraction", "data"), va="bottom", fontsize="small")
    left.set(yscale="log", ylim=(MIN_NATS / 2, max(1.0, 2 * nats.max())), ylabel="KL, nats", title="Information per dimension")
    right.scatter(rank, widths, s=size, c=color, linewidths=0)
    right.axhline(1, color="black", linestyle="--", linewidth=1)
    right.annotate("the prior, N(0, 1)", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize="small")
    limits = min(0.4, widths.min() / 2), max(2.5, 2 * widths.max())
    right.set(yscale="log", ylim=limits, ylabel="standard deviation", title="Spread of the latents as a whole")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if limits[1] < 100 * limits[0] else (1,)))
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    for ax in (left, right):
        ax.set_xlabel("dimension, sorted by its KL")
        ax.grid(alpha=0.3)
    if by_channel:
        for c in range(len(kl)):
            right.scatter([], [], s=20, color=colormaps["tab10"](c), label=f"channel {c}")
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    write_figure(png, figure)
