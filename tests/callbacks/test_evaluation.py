"""What the evaluation during training makes of its figures, on figures that are given."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flowergen.callbacks.evaluation import PeriodicEvaluation
from flowergen.errors import UserError
from flowergen.evaluation.pictures import FEWEST

NUM = 100


def callback(tmp_path: Path, metric: str = "fid") -> PeriodicEvaluation:
    made = PeriodicEvaluation(tmp_path, "", 1, NUM, "classifier", metric)
    made.side = SimpleNamespace(real=SimpleNamespace(reference=range(NUM)))  # type: ignore[assignment]
    return made


def look(made: PeriodicEvaluation, held_out: float, copies: int, **figures: float) -> list[str]:
    """One evaluation; the checkpoints that it wants kept."""
    values = {f"eval/{name}": value for name, value in figures.items()}
    values |= {"eval/copies_pixels_calibrated": copies / NUM, "eval/copies_pixels_calibrated_held_out": 0.01}
    made.history.append({"epoch": len(made.history) + 1, "held_out": held_out, **values})
    made.checkpoint_names = []
    made._choose_checkpoints(values)
    return made.checkpoint_names


def test_a_model_that_copies_while_its_held_out_loss_rises_is_marked(tmp_path: Path) -> None:
    """From the first of two such looks in a row; before_memorising.ckpt stays that of the lowest loss without copies."""
    made, before = callback(tmp_path), ["before_memorising.ckpt"]
    assert look(made, 3.0, 0) == before
    assert look(made, 2.0, 2) == before
    assert look(made, 1.9, 40) == [], "the lowest loss, but with copies"
    assert look(made, 2.5, 50) == []
    assert made.memorising is None
    assert look(made, 2.6, 60) == []
    assert made.memorising == 4
    assert look(made, 1.0, 0) == [], "never again"


def test_a_rising_loss_or_copies_alone_are_no_memorising(tmp_path: Path) -> None:
    rising, copying = callback(tmp_path), callback(tmp_path)
    for epoch in range(4):
        look(rising, 1.0 + epoch, 1)
        look(copying, 4.0 - epoch, 50)
    assert rising.memorising is copying.memorising is None


@pytest.mark.parametrize(("metric", "values"), [("fid", (5.0, 4.0, 4.0, 6.0)), ("recall", (0.1, 0.2, 0.2, 0.05))])
def test_the_best_checkpoint_is_that_of_the_best_figure(tmp_path: Path, metric: str, values: tuple[float, ...]) -> None:
    """The lowest distance, the highest recall; of equal ones the first; where it was is in the checkpoint."""
    made = callback(tmp_path, metric)
    kept = [f"best_{metric}.ckpt" in look(made, 1.0, 0, **{metric: value}) for value in values]
    assert kept == [True, True, False, False]
    resumed = callback(tmp_path, metric)
    resumed.load_state_dict(made.state_dict())
    assert f"best_{metric}.ckpt" not in look(resumed, 1.0, 0, **{metric: values[0]})
    assert len(resumed.history) == 5


def test_without_held_out_pictures_nothing_is_called_memorising(tmp_path: Path) -> None:
    made = callback(tmp_path)
    made.history.append({"epoch": 1, "held_out": float("nan")})
    made._choose_checkpoints({})
    assert made.checkpoint_names == []
    assert made.memorising is None


def test_too_few_validation_pictures_are_named_before_training(tmp_path: Path) -> None:
    """Half of them are the reference, which needs four."""
    from flowergen.data.procedural_datamodule import ProceduralDataModule
    from flowergen.evaluation.pictures import real_pictures_of

    def data(num_images: int) -> ProceduralDataModule:
        made = ProceduralDataModule(
            name="procedural", num_images=num_images, num_classes=2, drawing_seed=0, image_size=16, batch_size=4,
            split="auto", split_seed=0, horizontal_flip=False, on_corrupt="error", cache_dir=str(tmp_path), seed=0,
        )  # fmt: skip
        made.setup()
        return made

    assert len(real_pictures_of(data(80), 16, "val").reference) == FEWEST
    with pytest.raises(UserError, match=r"^2 validation pictures to evaluate with, and 4"):
        real_pictures_of(data(40), 16, "val")
