"""``python -m flowergen.doctor``: check the requirements of training, and print one line for each, with how to fix it."""

import sys


def main() -> None:
    """Check the requirements, print the results, and exit with 1 if training cannot start."""
    try:
        from flowergen.app.command_schema import Doctor
        from flowergen.app.doctor import Line, all_checks
        from flowergen.app.plain_command import read_command_line
    except ImportError as error:  # the command must also work in an incomplete environment
        print(f"missing  {error.name}: {error}; reinstall flowergen's requirements, see the README")
        sys.exit(1)
    config = read_command_line("doctor", Doctor, sys.argv[1:])
    fatal = []
    for line in all_checks(config["paths"]):
        print(line, flush=True)
        fatal += [line.what] if line.fatal else []
    print(Line("missing" if fatal else "ok", "training", f"cannot start without {', '.join(fatal)}" if fatal else "can start"))
    sys.exit(1 if fatal else 0)


if __name__ == "__main__":
    try:
        from flowergen.app.command import one_line_errors
    except ImportError:
        main()
    else:
        one_line_errors(main)
