"""Plots of latents as points in a plane, and of paths between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from flowergen.viz.figures import write_figure

GREY = (0.6, 0.6, 0.6, 1.0)
PERPLEXITY = 30.0  # van der Maaten & Hinton 2008: 5 to 50
TSNE_DIMS = 50  # principal components that t-SNE works on
MAX_IN_LEGEND = 20  # classes; more are numbered on the map
NAMES_PER_COLUMN = 40
MAX_NAMES = 160
MAX_NAME_LENGTH = 24  # maximum characters of a class name in the list


def principal_plane(points: Tensor, num: int = 2) -> tuple[Tensor, Tensor]:
    """Fit the plane of largest variance (Pearson 1901, 10.1080/14786440109462720).

    Args:
        points: (L, D), L >= 2.
        num: number of directions; two span the plane.

    Returns:
        The points' mean (D,), and orthonormal directions (num, D), with scikit-learn's signs; a missing one is zero.
    """
    from sklearn.decomposition import PCA  # takes a second to import

    with np.errstate(invalid="ignore"):  # explained ratios of a variance of zero
        pca = PCA(min(num, *points.shape), svd_solver="randomized", random_state=0).fit(points.double().numpy())
    directions = np.zeros((num, points.shape[1]))
    directions[: len(pca.components_)] = pca.components_
    return points.new_tensor(pca.mean_), points.new_tensor(directions)


def tsne_plane(points: Tensor, seed: int) -> Tensor:
    """Embed points (L, D) in a plane by t-SNE: neighbours stay close, but distances and sizes of clusters are meaningless.

    Source: van der Maaten & Hinton 2008. Uses scikit-learn on the first 50 principal components, initialised with the first two
    (Kobak & Berens 2019, 10.1038/s41467-019-13056-x), which preserves global structure.

    Returns:
        (L, 2); zeros if all points are equal.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    num = len(points)
    plane, spread = np.zeros((num, 2)), points.double().numpy()
    spread = spread - spread.mean(0)
    if num < 2 or spread.std(0).max() < 1e-9 * max(1.0, float(points.abs().max())):
        return points.new_tensor(plane)
    pca = PCA(min(TSNE_DIMS, num - 1, spread.shape[1]), svd_solver="randomized", random_state=0)
    coordinates = pca.fit_transform(spread)
    plane[:, : coordinates.shape[1]] = coordinates[:, :2]
    start = 1e-4 * plane / plane[:, 0].std()
    tsne = TSNE(perplexity=min(PERPLEXITY, (num - 1) / 3), init=start.astype(np.float32), random_state=seed % 2**32)
    return points.new_tensor(tsne.fit_transform(coordinates.astype(np.float32)))


def draw_classes(
    png: str | Path, points: Tensor, labels: Tensor, names: Sequence[str], title: str, axes: tuple[str, str]
) -> None:
    """Plot points (L, 2) coloured by class, (L,) with -1 for none, in a PNG file that is written atomically.

    Up to 20 classes have a legend; more have numbers at their medians and a list of names. ``axes`` are the labels of the x and
    y axis; without the latter, no ticks are drawn.
    """
    shown = [label for label in labels.unique().tolist() if label >= 0]
    few = len(shown) <= MAX_IN_LEGEND
    listed = shown[:MAX_NAMES]
    columns = 1 if few else -(-len(listed) // NAMES_PER_COLUMN)
    figure = Figure(figsize=(9 if few else 7.5 + 2 * columns, 6.5 if few else 7.5), dpi=110, layout="constrained")
    ax = figure.subplots()
    colors = dict(zip(shown, class_colors(len(shown)), strict=True))
    across, up = points.T.numpy()
    size = 14 if len(points) <= 1000 else 8
    ax.scatter(across, up, s=size, c=[colors.get(label, GREY) for label in labels.tolist()], alpha=0.7, linewidths=0)
    ax.set(title=title, xlabel=axes[0], ylabel=axes[1])
    if not axes[1]:
        ax.set(xticks=[], yticks=[])
    if not few:
        for label in shown:
            x, y = points[labels == label].median(0).values.tolist()
            outline = [withStroke(linewidth=2, foreground="white")]
            ax.annotate(str(label), (x, y), color=colors[label], fontsize=8, weight="bold", ha="center", va="center",
                        path_effects=outline)  # fmt: skip
    entries = [(label, f"{label} {names[label][:MAX_NAME_LENGTH]}") for label in listed]
    if len(listed) < len(shown):
        entries.append((-2, f"and {len(shown) - len(listed)} more"))
    if shown and bool((labels < 0).any()):
        entries.append((-1, "no class"))
    for label, name in entries:
        ax.scatter([], [], s=20, color=colors.get(label, GREY), label=name)
    if entries:
        legend = figure.legend(loc="outside right center", ncols=columns, fontsize="small" if few else 6.5, handletextpad=0.2,
                               columnspacing=0.8, labelspacing=0.4, borderpad=0.4)  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class name may contain any characters
    write_figure(png, figure)


def class_colors(num: int) -> list[tuple[float, ...]]:
    """Return a color (R, G, B) or (R, G, B, A) in [0, 1] for each of ``num`` classes."""
    if num <= 10:
        return [colormaps["tab10"](k) for k in range(num)]
    if num <= MAX_IN_LEGEND:
        return [colormaps["tab20"](k) for k in range(num)]
    # the hues of consecutive classes differ by the golden angle
    return [tuple(0.85 * value for value in colormaps["hsv"](k * 0.618034 % 1)[:3]) for k in range(num)]


def draw_paths(png: str | Path, points: Tensor, labels: Tensor, paths: Mapping[tuple[int, str], Tensor], title: str) -> None:
    """Plot points, and over them paths that end in a star; points are grey, or in the colour of the path of their class.

    Points are (L, 2), and their classes (L,) -1 for none. A path is (T, 2) points; paths are given by class number, -1 for no
    class, and name.
    """
    figure = Figure(figsize=(9, 6.5), dpi=110, layout="tight")
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
        text.set_parse_math(False)  # a class name may contain any characters
    write_figure(png, figure)
