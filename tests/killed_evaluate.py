"""``python -m flowergen.evaluate``, which SIGKILLs itself where it is told to:
python -m tests.killed_evaluate MOMENT COUNT ARGUMENTS...; COUNT 0 is never."""

import sys

from flowergen import evaluate
from flowergen.app.command import one_line_errors
from tests.killed_train import kill_at


def main() -> None:
    """Set the trap, then evaluate."""
    from flowergen.evaluation import card, measure, probe, rows

    moments = {
        "probe": (probe, "fit"),
        "rows": (rows.Rows, "append"),
        "copies": (measure.copies, "neighbours"),
        "card": (card, "markdown"),
    }
    moment, count, *sys.argv[1:] = sys.argv[1:]
    kill_at(*moments[moment], int(count))
    evaluate.main()


if __name__ == "__main__":
    one_line_errors(main)
