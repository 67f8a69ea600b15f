"""Latents as points on a plane, and ways between them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flowergen.viz.grids import write_png


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """The plane in which points spread most (Pearson 1901, 10.1080/14786440109462720).

    Args:
        points: (L, D), L >= 2.

    Returns:
        Their mean (D,), and two orthonormal directions (2, D), with scikit-learn's signs; zero where there is none.
    """
    from sklearn.decomposition import PCA  # a second to import

    pca = PCA(min(2, *points.shape), svd_solver="randomized", random_state=0).fit(points.double().numpy())
    directions = np.zeros((2, points.shape[1]))
    directions[: len(pca.components_)] = pca.components_
    return points.new_tensor(pca.mean_), points.new_tensor(directions)


def draw_paths(png: str | Path, points: Tensor, labels: Tensor, paths: Mapping[tuple[int, str], Tensor], title: str) -> None:
    """Points coloured by class, and ways over them that end in a star.

    Args:
        png: the file to write, atomically.
        points: (L, 2).
        labels: (L,) int64, -1 for none.
        paths: (T, 2) each, by class number, -1 for none, and name.
        title: of the picture.
    """
    figure = Figure(figsize=(9, 6.5), dpi=110, layout="tight")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    colors = {label: colormaps["tab20"](k % 20) for k, (label, _) in enumerate(paths)}
    of_points = {label: color for label, color in colors.items() if label >= 0}
    grey = (0.8, 0.8, 0.8, 1.0)
    across, up = points.T.numpy()
    ax.scatter(across, up, s=6, c=[of_points.get(int(label), grey) for label in labels], alpha=0.5, linewidths=0)
    for (label, name), path in paths.items():
        xs, ys = path.T.numpy()
        ax.plot(xs, ys, color="black", linewidth=2.2, alpha=0.5)
        ax.plot(xs, ys, color=colors[label], linewidth=1.4, marker=".", markersize=4)
        ax.plot(
            xs[-1:], ys[-1:], marker="*", markersize=15, color=colors[label], markeredgecolor="black", linestyle="", label=name
        )
    ax.set(title=title, xlabel="first principal direction", ylabel="second principal direction")
    for text in ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
        text.set_parse_math(False)  # a class may be called anything
    canvas.draw()
    write_png(png, np.asarray(canvas.buffer_rgba())[..., :3])
