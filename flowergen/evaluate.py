"""``python -m flowergen.evaluate``: the metric card of a run, or of any pictures; several cards in one table."""

import json
import logging
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowergen.config.command import one_line_errors
from flowergen.config.command_schema import Evaluate
from flowergen.config.plain_command import read_command_line
from flowergen.config.run_folder import (
    RunFolder,
    find_run,
    git_state,
    hardware,
    locked,
    make_folder,
    versions,
    write_atomically,
)
from flowergen.config.sampling import OF_DIFFUSION, check_sampling
from flowergen.data.listing import printable
from flowergen.errors import UserError

if TYPE_CHECKING:
    from flowergen.config.evaluation import Subject

OF_RUNS = ("source", *OF_DIFFUSION, "num_samples", "repeats", "data.root")  # without effect on folders
OF_FOLDERS = ("reference", "train", "image_size")


def main() -> None:
    """Check, measure, write the card, and print it."""
    config = read_command_line("evaluate", Evaluate, sys.argv[1:])
    if config is None:
        return
    if _one_of(config) == "compare":
        _compare(config["compare"])
        return
    if config["out"] is not None:
        _refuse_other_content(Path(config["out"]))
    run = None
    if config["run"] is not None:
        run, _ = find_run(config["run"])
        check_sampling(config, run.read_config()["model"], sys.argv[1:], dict.fromkeys(OF_FOLDERS, "generated=DIR"))
    else:
        check_sampling_of_folders(sys.argv[1:])
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)

    from flowergen.config.evaluation import subject_of_folders, subject_of_run

    subject = subject_of_run(config, run) if run else subject_of_folders(config)
    folder = _folder(config["out"], run, subject)
    try:
        with locked(folder, "evaluating"):
            card = _card(subject, folder, run)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give out=DIR elsewhere") from error
    from flowergen.evaluation.card import markdown

    print(markdown(card).partition("\n## Protocol")[0])
    print(f"\ncard: {printable(str(folder / 'card.md'))}")


def _one_of(config: dict[str, Any]) -> str:
    given = [key for key in ("run", "generated", "compare") if config[key] is not None]
    if len(given) != 1:
        raise UserError(
            "give one of run=RUN, compare=[RUN1,RUN2], or generated=DIR with reference=DIR"
            + (f", not {' and '.join(given)} together" if given else "; --help says more")
        )
    if given[0] == "generated" and config["reference"] is None:
        raise UserError("generated=DIR is held against real pictures: give reference=DIR too")
    if given[0] == "generated" and config["extractor"] == "classifier" and config["train"] is None:
        raise UserError("extractor=classifier learns from labelled training pictures: give train=DIR too, or take inception")
    return given[0]


def check_sampling_of_folders(typed: list[str]) -> None:
    """A note on options that have no effect on folders."""
    for key in OF_RUNS:
        if any(argument.startswith(f"{key}=") for argument in typed):
            print(f"{key}= has no effect here: it is for run=RUN", file=sys.stderr)


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


def _refuse_other_content(folder: Path) -> None:
    """A folder that no evaluation has made is refused before anything is loaded."""
    try:
        if any(folder.iterdir()) and not (folder / "evaluation.json").is_file():
            raise UserError(f"out={printable(str(folder))} holds something else, and nothing is overwritten: give a new folder")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"out={printable(str(folder))} cannot be read ({error.strerror}): give another folder") from error


def _folder(out: str | None, run: RunFolder | None, subject: "Subject") -> Path:
    """Where the card goes, and what a stopped evaluation has left is.

    Raises:
        UserError: the folder that was given holds something else.
    """
    default = (run.path if run else Path("outputs").absolute()) / "evaluation" / subject.hash
    folder = Path(out) if out is not None else default
    make_folder(folder)
    mark = folder / "evaluation.json"
    content = json.dumps({"protocol": subject.protocol, "subject": subject.described}, indent=2, sort_keys=True)
    try:
        if mark.is_file() and mark.read_text(encoding="utf-8") == content:
            return folder
        if any(folder.iterdir()):
            raise UserError(f"out={printable(str(folder))} holds something else, and nothing is overwritten: give a new folder")
        write_atomically(mark, content)
    except OSError as error:
        raise UserError(f"{printable(str(folder))} cannot be written to ({error.strerror}): give out=DIR elsewhere") from error
    return folder


def _card(subject: "Subject", folder: Path, run: RunFolder | None) -> dict[str, Any]:
    """The card in the folder, measured first if there is none."""
    from flowergen.config.evaluation import measure
    from flowergen.evaluation.card import hash_of, markdown, read_card, summarised
    from flowergen.evaluation.card_files import write_pairs, write_scalars

    card = read_card(folder)
    if card is not None:
        print(f"measured before: delete {printable(str(folder))} to measure again", file=sys.stderr)
        return card
    start = time.monotonic()
    measured = measure(subject, folder / "work")
    card = {
        "subject": subject.described,
        "counts": subject.counts,
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
    write_pairs(folder, measured.pairs)
    write_atomically(folder / "card.md", markdown(card))
    write_atomically(folder / "card.json", json.dumps(card, indent=2) + "\n")
    shutil.rmtree(folder / "work", ignore_errors=True)
    if run is not None:
        write_scalars(run.tensorboard, card, subject.step)
    return card


if __name__ == "__main__":
    one_line_errors(main)
