import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.evaluation import latent_report
from flowergen.evaluation.collapse import measure_collapse, verdict
from flowergen.evaluation.latent_report import as_data, figures_of_classes, main_figures, markdown, write_maps
from flowergen.nn.posterior import Posterior

ABOUT = {"run": "my_run", "data": "tiny", "split": "test", "pictures": "test pictures"}


def latents(num: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(num, *shape, generator=g), torch.randn(num, *shape, generator=g) - 2


def report(mean: Tensor, logvar: Tensor, labels: Tensor) -> dict[str, Any]:
    collapse = measure_collapse(Posterior(mean, logvar), torch.arange(len(mean)), torch.zeros_like(mean))
    classes = figures_of_classes(mean, labels, None, labels)
    return as_data({**ABOUT, "num_pictures": len(mean)}, collapse, classes, verdict(collapse, {}))


@pytest.mark.parametrize("shape", [(40, 1, 1), (3, 2, 4)])
def test_the_report_is_plain_data_whose_channels_and_dimensions_add_up(shape: tuple[int, int, int]) -> None:
    data = report(*latents(50, shape), torch.arange(50) % 3)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for key in ("kl", "aggregate_kl", "information_bound"):
        assert data[key] == pytest.approx(np.sum(data["per_dimension"][key]))
    for key in ("kl", "silent_dimensions", "active_units", "aggregate_kl"):
        assert data[key] == pytest.approx(sum(channel[key] for channel in data["channels"]))
    assert np.shape(data["per_dimension"]["aggregate_std"]) == shape
    assert len(data["classes"]) == (1 if shape[1] == 1 else 2)
    text = markdown(data)
    for line in (*data["verdict"], *main_figures(data).values()):
        assert line in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == min(shape[0], 32)
    nats = [float(row.split("|")[2]) for row in rows]
    assert nats == sorted(nats, reverse=True)
    assert ("By channel" in text) == (shape[1] > 1)


def test_what_could_not_be_had_is_said() -> None:
    mean, logvar = latents(4, (2, 1, 1))
    assert main_figures(report(mean, logvar, torch.full((4,), -1)))["classes"] == "the pictures have none"
    line = main_figures(report(mean, logvar, torch.tensor([-1, -1, -1, 0])))["classes, whole latent"]
    assert "no k-NN accuracy" in line
    assert "no silhouette" in line


@pytest.mark.parametrize(
    ("num", "shape", "varied"),
    [(1, (3, 2, 2), True), (2, (1, 1, 1), True), (3, (3, 2, 2), True), (30, (3, 2, 2), True), (30, (3, 2, 2), False)],
)
def test_maps_are_drawn_of_few_pictures_and_of_latents_that_do_not_vary(
    num: int, shape: tuple[int, int, int], varied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_report, "MAX_TSNE_POINTS", 20)
    mean, logvar = latents(num, shape)
    if not varied:
        mean, logvar = torch.full_like(mean, 0.7), torch.zeros_like(mean)
    collapse = measure_collapse(Posterior(mean, logvar), torch.arange(num), torch.zeros_like(mean))
    write_maps(tmp_path, collapse, mean, torch.arange(num) % 2 - 1, ["rose"], "test pictures", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl.png", "pca.png", "tsne.png"]
    for path in tmp_path.iterdir():
        assert np.asarray(Image.open(path)).std() > 5
