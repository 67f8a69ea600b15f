"""Class separation in a latent space."""

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 10


@dataclass(frozen=True)
class ClassFigures:
    """Measures of class separation; None if they cannot be computed.

    Attributes:
        silhouette: mean over the pictures, -1 to 1: near 0 the classes overlap. It needs two classes, one with two pictures.
        accuracy: accuracy of classification by the k nearest training pictures, 0 to 1.
        majority: accuracy of always guessing the most frequent class of the training pictures.
        neighbours: k.
    """

    silhouette: float | None
    accuracy: float | None
    majority: float | None
    neighbours: int


def class_figures(
    points: np.ndarray, labels: np.ndarray, train_points: np.ndarray | None, train_labels: np.ndarray
) -> ClassFigures:
    """Compute silhouette (Rousseeuw 1987, 10.1016/0377-0427(87)90125-7) and k-nearest-neighbour accuracy, Euclidean, k = 10.

    Args:
        points: (N, D) finite.
        labels: (N,) int64, -1 if unlabelled; unlabelled pictures are left out.
        train_points: (L, D) reference points; None for the points themselves, none of which then counts as its own neighbour.
        train_labels: (L,) their labels, as ``labels``.
    """
    from sklearn.metrics import silhouette_score  # takes a second to import
    from sklearn.neighbors import NearestNeighbors

    points, labels = points[labels >= 0], labels[labels >= 0]
    silhouette = None
    if 2 <= len(np.unique(labels)) < len(labels):
        silhouette = float(silhouette_score(points, labels))
    itself = train_points is None
    known = points if train_points is None else train_points[train_labels >= 0]
    known_labels = labels if itself else train_labels[train_labels >= 0]
    k = min(NEIGHBOURS, len(known) - itself)
    if k < 1 or not len(points):
        return ClassFigures(silhouette, None, None, max(0, k))
    search = NearestNeighbors(n_neighbors=k).fit(known)
    nearest = known_labels[search.kneighbors(None if itself else points, return_distance=False)]  # (N, k)
    votes = np.stack([(nearest == label).sum(1) for label in range(known_labels.max() + 1)], axis=1)  # (N, K)
    majority = np.bincount(known_labels).argmax()
    return ClassFigures(silhouette, float((votes.argmax(1) == labels).mean()), float((labels == majority).mean()), k)
