"""``python -m flowergen.evaluate``: compute the metric card of a run or of any pictures, or compare several cards."""

import json
import logging
import shutil
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Evaluate
from flowergen.app.plain_command import read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.card_folder import card_folder, refuse_other_content
from flowergen.runs.machine_limits import out_of_memory_as_user_error
from flowergen.runs.provenance import git_state, hardware, versions
from flowergen.runs.run_folder import RunFolder, find_run, locked, write_atomically
from flowergen.runs.run_page import write_page
from flowergen.runs.sampling import DIFFUSION_OPTIONS, check_sampling

if TYPE_CHECKING:
    from flowergen.runs.evaluation import Subject

RUN_OPTIONS = ("source", *DIFFUSION_OPTIONS, "num_samples", "repeats", "seed", "data.root")  # no effect with generated=
FOLDER_OPTIONS = ("reference", "train", "image_size")  # no effect with run=


@out_of_memory_as_user_error("; use fewer pictures at a time with batch_size=, or fewer in total with num_samples=")
def main() -> None:
    """Check the options, measure, write the card, and print it."""
    config = read_command_line("evaluate", Evaluate, sys.argv[1:])
    if _one_of(config) == "compare":
        _compare(config["compare"])
        return
    if config["out"] is not None:
        refuse_other_content(config["out"])
    run = None
    if config["run"] is not None:
        run, _ = find_run(config["run"])
        unused = dict.fromkeys(FOLDER_OPTIONS, "generated=DIR")
        check_sampling(config, run.sampling_folder.read_config()["model"], sys.argv[1:], unused)
    else:
        for key in RUN_OPTIONS:
            if any(argument.startswith(f"{key}=") for argument in sys.argv[1:]):
                print(f"{key}= has no effect here: it is for run=RUN", file=sys.stderr)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)

    from flowergen.runs.evaluation import subject_of_folders, subject_of_run

    subject = subject_of_run(config, run) if run else subject_of_folders(config)
    default = (run.path if run else Path("outputs").absolute()) / "evaluation" / subject.hash
    folder = card_folder(config["out"], default, subject.identity)
    with locked(folder, "evaluating"):
        card = _card(subject, folder, run)
    from flowergen.evaluation.card import markdown

    print(markdown(card).partition("\n## Protocol")[0])
    print(f"\ncard: {printable(str(folder / 'card.md'))}")
    if run and config["out"] is None:
        with suppress(OSError):  # the card exists anyway
            print(f"page: {printable(str(write_page(run)))}")


def _one_of(config: dict[str, Any]) -> str:
    chosen = [key for key in ("run", "generated", "compare") if config[key] is not None]
    if len(chosen) != 1:
        raise UserError(
            "give one of run=RUN, compare=[RUN1,RUN2], or generated=DIR with reference=DIR"
            + (f", not {' and '.join(chosen)} together" if chosen else "; see --help")
        )
    if chosen[0] == "generated" and config["reference"] is None:
        raise UserError("generated=DIR is compared with real pictures: give reference=DIR too")
    return chosen[0]


def _compare(typed: str) -> None:
    from flowergen.evaluation.card import comparison, newest_card

    names = [name.strip() for name in typed.strip("[]() ").split(",") if name.strip()]
    if len(names) < 2:
        raise UserError("compare= takes two cards or more: compare=[RUN1,RUN2]")
    paths = [Path(name.strip("'\"")).expanduser().absolute() for name in names]
    for path in paths:
        if not path.exists():
            raise UserError(f"compare: {printable(str(path))} does not exist; give run folders or folders of cards")
    print("\n".join(comparison([newest_card(path) for path in paths])))


def _card(subject: "Subject", folder: Path, run: RunFolder | None) -> dict[str, Any]:
    """Return the card in the folder; if there is none, measure and write it first."""
    from flowergen.evaluation.card import hash_of, markdown, read_card, summarised
    from flowergen.evaluation.card_files import write_pairs, write_scalars
    from flowergen.runs.evaluation import measure

    card = read_card(folder)
    if card is not None:
        print(f"already measured: delete {printable(str(folder))} to measure again", file=sys.stderr)
        return card
    start = time.monotonic()
    measured = measure(subject, folder / "work")
    card = {
        "subject": subject.described,
        "counts": subject.counts,
        "probe": subject.probe,
        "results": summarised(measured.results),
        "missing": measured.missing,
        "notes": measured.notes,
        "protocol_hash": hash_of(subject.protocol),
        "protocol": subject.protocol,
        "made": {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds in the last session": round(time.monotonic() - start, 1),
            "hardware": hardware(),
            "git": git_state(),
            "versions": versions(),
        },
    }
    try:
        write_pairs(folder, measured.pairs)
        write_atomically(folder / "card.md", markdown(card))
        if run is not None:
            scalars = run.tensorboard / "evaluation" / folder.name
            try:
                write_scalars(scalars, card, subject.step)
            except OSError as error:
                print(f"no scalars for TensorBoard: {scalars} cannot be written to ({error.strerror})", file=sys.stderr)
        write_atomically(folder / "card.json", json.dumps(card, indent=2) + "\n")  # last: it marks a complete evaluation
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): make room, and run the command again") from error
    shutil.rmtree(folder / "work", ignore_errors=True)
    return card


if __name__ == "__main__":
    one_line_errors(main)
