"""The wrapper of every command: what was typed is checked first, and errors are one line."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flowergen.config.check import check, contradictions
from flowergen.config.overrides import compose_train, merged, parse, quote_paths, resolve, sweep_samples
from flowergen.config.run_folder import RunFolder, claim, find_run
from flowergen.config.schema import Train
from flowergen.errors import UserError

# what a resumed run may change; anything else would make it another run
MAY_CHANGE = (
    "resume",
    "paths",
    "trainer",
    "logger",
    "callbacks",
    "data.root",
    "data.cache_dir",
    "data.on_corrupt",
    "model.beta",
    "model.beta_warmup_steps",
    "model.lr_schedule",
    "model.lr_warmup_steps",
    "model.optimizer.lr",
)


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command: a ``UserError`` becomes one line and status 2, Ctrl-C status 130; a bug keeps its traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra cuts the tracebacks of our own bugs short
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())


def prepare_train(argv: Sequence[str]) -> list[str]:
    """Phase 1 of ``train``: check the command line without importing torch, and without making a folder before it is right.

    Args:
        argv: without the program's name.

    Returns:
        The arguments for ``hydra.main``: paths quoted, a resumed run's own overrides put first, a run folder claimed.

    Raises:
        UserError: one line that says what to do.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    args = parser.parse_args(list(argv))
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return list(argv)
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir} is no folder that exists")
    # Hydra's parser takes flags and overrides in any order; it is given the flags first
    flags = ["--multirun"] if args.multirun else []
    flags += ["--config-dir", args.config_dir] if args.config_dir else []
    overrides = quote_paths(args.overrides, args.multirun)
    if args.multirun:
        return [*flags, *_prepared_sweep(overrides, args.config_dir)]
    if any(override.startswith("resume=") and override != "resume=null" for override in overrides):
        return [*flags, *_prepared_resume(overrides, args.config_dir)]
    composed, lines = checked(overrides, args.config_dir)
    return [*flags, *lines, *_new_run_dir(lines, composed)]


def checked(overrides: Sequence[str], config_dir: str | None = None) -> tuple[DictConfig, list[str]]:
    """Compose, resolve and check.

    Returns:
        The composed config, and the overrides as Hydra wants them.

    Raises:
        UserError: for whatever is wrong with it.
    """
    composed, lines = compose_train(overrides, config_dir)
    HydraConfig.instance().set_config(composed)
    config = resolve(composed)
    check(config, Train)
    contradictions(config)
    return composed, lines


def _new_run_dir(lines: Sequence[str], composed: DictConfig) -> list[str]:
    """The override that says which folder the run gets, its own from now on."""
    given = _values_of("hydra.run.dir", lines)
    if not given:
        if os.environ.get("WORLD_SIZE", "1") != "1" or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            raise UserError("started by torchrun or SLURM: give every process the same folder with hydra.run.dir=FOLDER")
        return quote_paths([f"hydra.run.dir={claim(composed.hydra.run.dir)}"])
    if is_first_process() and RunFolder(given[-1]).config.exists():
        raise UserError(f"{given[-1]} holds a run already: go on with it by resume={given[-1]}, or choose another folder")
    return []


def _prepared_resume(overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """The run's own overrides first, then the new ones, into its own folder."""
    run, _ = find_run(_values_of("resume", overrides)[-1], "resume")
    stored = run.read_config()
    paths = quote_paths([f"paths.{name}={path}" for name, path in stored["paths"].items()])
    composed, lines = checked(merged([*paths, *run.read_overrides(), *overrides]), config_dir)
    before, now = flat(stored), flat(resolve(composed))
    for key in [*before, *(key for key in now if key not in before)]:
        if before.get(key) != now.get(key) and not any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE):
            raise UserError(
                f"resume: {key} was {before.get(key)} and is {now.get(key)} now; "
                "a resumed run keeps its architecture, data and objective: start a new one"
            )
    lines = [line for line in lines if not line.startswith("hydra.run.dir=")]
    return [*lines, *quote_paths([f"hydra.run.dir={run.path}"])]


def _prepared_sweep(overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Every swept value checked once, and a folder claimed for the sweep."""
    for key, instead in (("resume", "leave -m out"), ("hydra.run.dir", "use hydra.sweep.dir=")):
        if _values_of(key, overrides):
            raise UserError(f"{key}= has no meaning for a sweep: {instead}")
    composed, lines = next(iter([checked(sample, config_dir) for sample in sweep_samples(overrides)]))
    added = [line.startswith("++") and not override.startswith("+") for line, override in zip(lines, overrides, strict=True)]
    swept = [f"++{override}" if add else override for override, add in zip(overrides, added, strict=True)]
    if _values_of("hydra.sweep.dir", overrides):
        return swept
    return [*swept, *quote_paths([f"hydra.sweep.dir={claim(composed.hydra.sweep.dir)}"])]


def _values_of(key: str, overrides: Sequence[str]) -> list[str]:
    return [str(o.value()) for o in parse([line for line in overrides if line.startswith(f"{key}=")])]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A config as dotted keys and values.

    >>> flat({"model": {"beta": 1, "channels": [8, 16]}})
    {'model.beta': 1, 'model.channels': [8, 16]}
    """
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that writes files, known before any of it is set up."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable]) == 0
    return True


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m flowergen.train --help lists the options")
