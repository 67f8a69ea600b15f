"""Command line of every command except ``train``: same ``key=value``, no Hydra folder, ``--help`` prints the YAML file."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from flowergen.app.help import help_text
from flowergen.config.check import check
from flowergen.config.overrides import compose_command
from flowergen.config.rules import PATH, TEXT
from flowergen.errors import UserError, printable
from flowergen.quoting import PATH_KEYS, quote_paths, quote_texts
from flowergen.runs.run_folder import create_unused_folder, make_folder


def read_command_line(name: str, schema: type, argv: Sequence[str]) -> dict[str, Any]:
    """Phase 1 of a command: return its checked config without importing torch; ``--help`` prints the help and exits.

    Args:
        name: name of the command; ``conf/NAME.yaml`` holds its keys.
        schema: dataclass that describes the keys.
        argv: arguments without the program name. For commands that take a run, one without "=" is the run's path.

    Returns:
        The config as plain data with absolute paths.

    Raises:
        UserError: the command line is invalid; one line says what to do.
    """
    if any(argument in ("-h", "--help") for argument in argv):
        print(help_text(name), flush=True)
        sys.exit()
    for argument in argv:
        if argument.startswith("-"):
            raise UserError(f"{argument} is not an option of this command, which takes key=value; --help lists the keys")
    hints = get_type_hints(schema, include_extras=True)
    if "run" in hints:  # "sample PATH" means "sample run=PATH"
        argv = [argument if "=" in argument else f"run={argument}" for argument in argv]
    paths = [*PATH_KEYS, *(key for key, hint in hints.items() if _is(PATH, hint))]
    texts = [key for key, hint in hints.items() if _is(TEXT, hint)]
    config = compose_command(name, schema, quote_texts(quote_paths(argv, keys=paths), texts))
    check(config, schema)
    return config


@contextmanager
def output_folder(out: str | None, default: Path) -> Iterator[Path]:
    """Make a new folder, ``out`` or else the default, numbered if it exists, to write into; removed if left empty.

    Raises:
        UserError: the folder cannot be made or written to, or is not empty.
    """
    folder = create_unused_folder(default, key="out") if out is None else _empty_folder(out)
    try:
        yield folder
    except OSError as error:
        raise UserError(f"{printable(str(folder))} cannot be written to ({error.strerror}): give out=DIR elsewhere") from error
    finally:
        with suppress(OSError):
            folder.rmdir()


def _empty_folder(out: str) -> Path:
    folder = Path(out)
    make_folder(folder)
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise UserError(f"out={printable(out)} cannot be read ({error.strerror}): choose another folder") from error
    if not empty:
        raise UserError(f"out={printable(out)} already contains files, and nothing is overwritten: give a new folder")
    return folder


def _is(marker: str, hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return marker in get_args(hint)
    return any(_is(marker, option) for option in get_args(hint))
