"""``python -m flowergen.doctor``: what is there for training, and what is missing; a line each, with how to get it."""

import sys


def main() -> None:
    """Look, print, and say whether training can start."""
    try:
        from flowergen.config.command_schema import Doctor
        from flowergen.config.doctor import Line, examined
        from flowergen.config.plain_command import read_command_line
    except ImportError as error:  # half an environment is what this command is asked about
        print(f"missing  {error.name}: {error}; pip install flowergen's requirements again, see the README")
        sys.exit(1)
    config = read_command_line("doctor", Doctor, sys.argv[1:])
    if config is None:
        return
    fatal = []
    for line in examined(config["paths"]):
        print(line, flush=True)
        fatal += [line.what] if line.fatal else []
    print(Line("missing" if fatal else "ok", "training", f"cannot start without {', '.join(fatal)}" if fatal else "can start"))
    sys.exit(1 if fatal else 0)


if __name__ == "__main__":
    try:
        from flowergen.config.command import one_line_errors
    except ImportError:
        main()
    else:
        one_line_errors(main)
