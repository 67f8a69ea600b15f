import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from flowergen.evaluation.latent_classes import class_figures
from flowergen.evaluation.latent_report import figures_of_classes


def groups(num: int = 90, apart: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of five dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, num, p=[0.5, 0.3, 0.2])
    return rng.normal(size=(num, 5)) + apart * np.eye(5)[labels], labels


def test_figures_are_scikit_learn_s_and_rousseeuw_s() -> None:
    points, labels = groups()
    train_points, train_labels = groups(200, seed=1)
    found = class_figures(points, labels, train_points, train_labels)
    classifier = KNeighborsClassifier(n_neighbors=10).fit(train_points, train_labels)
    assert found.accuracy == pytest.approx(classifier.score(points, labels))
    assert 0.5 < found.accuracy < 1
    assert found.majority == pytest.approx((labels == np.bincount(train_labels).argmax()).mean())
    assert found.neighbours == 10
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    scores = []
    for i, own in enumerate(labels):
        same = (labels == own) & (np.arange(len(labels)) != i)
        a, b = distance[i, same].mean(), min(distance[i, labels == other].mean() for other in range(3) if other != own)
        scores.append((b - a) / max(a, b))
    assert found.silhouette == pytest.approx(np.mean(scores))


def test_a_picture_does_not_count_as_its_own_neighbour() -> None:
    """Where the pictures are the training pictures: scikit-learn, fitted without the one picture, for each of them."""
    points, labels = groups(60, apart=1.0)
    right = 0
    for i in range(60):
        others = np.arange(60) != i
        classifier = KNeighborsClassifier(n_neighbors=10).fit(points[others], labels[others])
        right += classifier.predict(points[i : i + 1])[0] == labels[i]
    found = class_figures(points, labels, None, labels)
    assert found.accuracy == pytest.approx(right / 60)
    assert found.accuracy != class_figures(points, labels, points, labels).accuracy


def test_pictures_without_a_class_change_nothing() -> None:
    points, labels = groups()
    train_points, train_labels = groups(200, seed=1)
    far = np.full((7, 5), 1e3)
    found = class_figures(
        np.concatenate((far, points)),
        np.concatenate((np.full(7, -1), labels)),
        np.concatenate((train_points, far)),
        np.concatenate((train_labels, np.full(7, -1))),
    )
    assert found == class_figures(points, labels, train_points, train_labels)
    assert class_figures(np.concatenate((far, points)), np.r_[np.full(7, -1), labels], None, labels) == class_figures(
        points, labels, None, labels
    )


@pytest.mark.parametrize(
    ("labels", "has_silhouette", "has_accuracy"),
    [
        ([0], False, False),
        ([0, 0, 0, 0], False, True),
        ([0, 1, 2, 3], False, True),
        ([0, 0, 1, 2], True, True),
        ([-1, -1, -1, 2], False, False),
        ([-1, 1, 1, 0], True, True),
    ],
)
def test_what_cannot_be_had_is_none(labels: list[int], has_silhouette: bool, has_accuracy: bool) -> None:
    """One picture, one class, a class for each picture, next to no labels; also where all latents are the same."""
    for points in (np.arange(12.0).reshape(4, 3)[: len(labels)], np.zeros((len(labels), 3))):
        found = class_figures(points, np.array(labels), None, np.array(labels))
        assert (found.silhouette is not None) == has_silhouette
        assert (found.accuracy is not None) == has_accuracy
        assert (found.majority is not None) == has_accuracy
        assert found.silhouette is None or -1 <= found.silhouette <= 1
    with_train = class_figures(np.zeros((1, 3)), np.array([1]), np.ones((2, 3)), np.array([1, 1]))
    assert (with_train.silhouette, with_train.accuracy, with_train.neighbours) == (None, 1.0, 2)
    assert class_figures(np.zeros((1, 3)), np.array([1]), np.ones((2, 3)), np.array([-1, -1])).accuracy is None


def test_a_spatial_latent_is_compared_as_a_whole_and_by_its_mean_over_positions() -> None:
    """A class that is told by where in the picture something is has a place in the first alone."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    z = 0.1 * torch.randn(60, 2, 2, 2, generator=g)
    z[labels == 0, 0, 0, 0] += 5
    z[labels == 1, 0, 1, 1] += 5
    found = figures_of_classes(z, labels, None, labels)
    assert list(found) == ["whole latent", "mean over positions"]
    assert found["whole latent"].accuracy == 1
    assert found["whole latent"].silhouette is not None
    assert found["whole latent"].silhouette > 0.8
    assert found["mean over positions"].accuracy is not None
    assert found["mean over positions"].accuracy < 0.8
    assert list(figures_of_classes(z.flatten(1)[..., None, None], labels, z.flatten(1)[..., None, None], labels)) == [
        "whole latent"
    ]
    assert figures_of_classes(z, torch.full((60,), -1), None, labels) == {}
