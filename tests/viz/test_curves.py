import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from flowergen.viz.curves import plot_curves, plot_evaluations

TABLE = """\
epoch,step,train/loss,train/loss_kl,train/lr,train_epoch/loss,val/loss,val/psnr,val/elbo
0,5,4,1,0.001,,,,
0,10,2,2,0.001,,,,
0,12,,,,3.5,5,17.5,-100
1,15,1,3,0.001,,,,
1,24,,,,1.5,3,inf,-90
2,30,0.5,nan,0.001,,,,
"""


@pytest.fixture
def drawn(monkeypatch):
    """What reaches the axes: {title: {label: (x, y)}}."""
    curves = {}
    plot, set_ = Axes.plot, Axes.set

    def spy_plot(ax, x, y, **kwargs):
        ax.drawn = getattr(ax, "drawn", {}) | {kwargs["label"]: (x, y)}
        return plot(ax, x, y, **kwargs)

    def spy_set(ax, **kwargs):
        curves[kwargs["title"]] = ax.drawn
        return set_(ax, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy_plot)
    monkeypatch.setattr(Axes, "set", spy_set)
    return curves


def test_panels_hold_the_epoch_averages(tmp_path, drawn):
    """The epoch's own average where it was logged, else the mean of its steps; learning rates have no panel."""
    (tmp_path / "metrics.csv").write_text(TABLE)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "loss_plot.png")
    assert list(drawn) == ["loss", "loss: KL (nats)", "PSNR (dB)", "ELBO (nats per image)"]
    assert drawn["loss"] == {"training": ([0, 1], [3.5, 1.5]), "validation": ([0, 1], [5, 3])}
    epochs, kl = drawn["loss: KL (nats)"]["training"]
    assert epochs == [0, 1, 2]
    np.testing.assert_equal(kl, [1.5, 3, np.nan])
    assert drawn["PSNR (dB)"]["validation"] == ([0, 1], [17.5, np.inf])


def test_a_plot_is_a_picture(tmp_path):
    """A PNG with something on it, and nothing else is left in the folder."""
    (tmp_path / "metrics.csv").write_text(TABLE)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "loss_plot.png")
    assert np.asarray(Image.open(tmp_path / "loss_plot.png")).std() > 5
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "loss_plot.png"}


@pytest.mark.parametrize("table", [None, "", "epoch,step,train/loss\n", "epoch,step,train/lr\n0,1,0.1\n"])
def test_nothing_to_draw_is_no_error_and_no_file(tmp_path, table):
    """No table, an empty one, one of a header, one without a loss."""
    if table is not None:
        (tmp_path / "metrics.csv").write_text(table)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "loss_plot.png")
    assert not (tmp_path / "loss_plot.png").exists()


def test_global_matplotlib_state_is_left_alone(tmp_path):
    """A notebook's open figures stay what they are."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    (tmp_path / "metrics.csv").write_text(TABLE)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "loss_plot.png")
    assert plt.get_fignums() == before


# -- evaluations during training

HISTORY = [
    {"epoch": 10, "eval/fid": 30.0, "eval/copies": 0.0, "eval/copies_held_out": 0.01},
    {"epoch": 20, "eval/fid": 20.0, "eval/loss_held_out": 5.0, "eval/copies": 0.2, "eval/copies_held_out": 0.02},
    {"epoch": 30, "eval/fid": 25.0, "eval/loss": 3.0, "eval/loss_held_out": 6.0, "eval/copies": 0.4},
]


def test_each_quantity_has_a_panel_with_that_of_held_out_pictures_beside(tmp_path, drawn, monkeypatch):
    """Points are at their epochs, also where some evaluations lack a value."""
    lines = []
    monkeypatch.setattr(Axes, "axvline", lambda ax, x, **kwargs: lines.append((x, kwargs["label"])))
    plot_evaluations(HISTORY, None, tmp_path / "evaluation.png")
    assert list(drawn) == ["fid", "loss", "copies"]
    assert drawn["fid"] == {"samples": ((10, 20, 30), (30, 20, 25))}
    assert drawn["copies"] == {"samples": ((10, 20, 30), (0, 0.2, 0.4)), "held-out pictures": ((10, 20), (0.01, 0.02))}
    assert drawn["loss"] == {"samples": ((30,), (3,)), "held-out pictures": ((20, 30), (5, 6))}
    assert lines == []
    plot_evaluations(HISTORY, 20, tmp_path / "evaluation.png")
    assert lines == [(20, "memorising begins")] * 3


def test_the_held_out_loss_is_drawn_where_it_was_measured(tmp_path, drawn):
    """Not at looks without a validation; a quantity that never was has no panel."""
    history = [
        {"epoch": 1, "held_out_loss": None, "eval/fid": 3.0},
        {"epoch": 2, "held_out_loss": 5.0, "eval/fid": 2.0},
        {"epoch": 3, "held_out_loss": None, "eval/fid": 1.0},
    ]
    plot_evaluations(history, None, tmp_path / "evaluation.png")
    assert drawn["fid"] == {"samples": ((1, 2, 3), (3, 2, 1))}
    (loss,) = (lines for title, lines in drawn.items() if title != "fid")
    assert loss == {"validation": ((2,), (5,))}
    drawn.clear()
    plot_evaluations(history[:1], None, tmp_path / "evaluation.png")
    assert list(drawn) == ["fid"]


@pytest.mark.parametrize("num", [1, 3])
def test_a_plot_of_evaluations_is_a_picture(tmp_path, num):
    plot_evaluations(HISTORY[:num], 20, tmp_path / "evaluation.png")
    assert np.asarray(Image.open(tmp_path / "evaluation.png")).std() > 5
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.png"]
