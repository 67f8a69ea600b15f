"""The wrapper of every command: what was typed is checked first, and errors are one line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Sweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowergen.config.check import check, contradictions
from flowergen.config.overrides import compose_train, merged, parse, quote_paths, quoted, quoted_path, resolve, sweep_samples
from flowergen.config.run_folder import RunFolder, claim, find_run, make_folder
from flowergen.config.schema import OptunaSearch, Train
from flowergen.config.stages import inherited, stage_before
from flowergen.config.sweep_folder import SweepFolder
from flowergen.data.listing import printable
from flowergen.errors import Stopped, UserError

LONGEST_LINE = 1500  # characters of an error
# parts of an optimiser step: a checkpoint within an epoch counts in them
MUST_STAY = ("trainer.accumulate_grad_batches",)
# what a resumed run may change; anything else would make it another run
MAY_CHANGE = (
    "resume",
    "sweep",
    "paths",
    "trainer",
    "logger",
    "callbacks",
    "data.root",
    "data.cache_dir",
    "data.on_corrupt",
    "data.decode",
    "data.device_resident",
    "model.beta",
    "model.beta_warmup_steps",
    "model.lr_schedule",
    "model.lr_warmup_steps",
    "model.optimizer.lr",
    "model.discriminator_optimizer.lr",
    "model.adversarial_weight",
    "model.guard",
    "model.guard_margin",
    "model.weights_dir",
    "model.sampling",
    "model.latent_cache",
)


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command: a ``UserError`` is one line and status 2, Ctrl-C status 130, SIGTERM 143; a bug keeps its traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra cuts the tracebacks of our own bugs short
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(Stopped(signal.SIGINT).status)
    except Stopped as stopped:
        sys.exit(stopped.status)


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks and control characters, the middle of a very long one left out."""
    text = printable(" ".join(str(error).split()))
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} ... {text[-half:]}"


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
    args = parser.parse_intermixed_args(list(argv))  # "seed=1 -m model.beta=1,2" as well
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return list(argv)
    for flag in ("config_name", "config_path", "package", "experimental_rerun"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is not for this command: configs of your own go into --config-dir DIR")
    multirun = args.multirun or _value_of("hparams_search", args.overrides) is not None
    overrides = quote_paths(args.overrides, multirun)
    if args.config_dir:
        if not os.path.isdir(args.config_dir):
            raise UserError(f"--config-dir {args.config_dir} is no folder that exists")
        # the same as an override, which a sweep hands on to its jobs and a run folder keeps
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{Path(args.config_dir).absolute()}')}]")
    if multirun:
        return ["--multirun", *_prepared_sweep(overrides)]
    if _value_of("sweep.skip_finished", overrides):
        raise UserError("sweep.skip_finished is for a sweep: add -m, or go on with a single run by resume=RUN")
    if _value_of("resume", overrides):
        return _prepared_resume(overrides)
    composed, lines = checked(overrides)
    return [*lines, *_new_run_dir(lines, composed)]


def checked(overrides: Sequence[str], run: RunFolder | None = None) -> tuple[DictConfig, list[str]]:
    """Compose, resolve and check.

    Args:
        overrides: as typed, paths quoted.
        run: that is resumed.

    Returns:
        The composed config, and the overrides as Hydra wants them: first what is taken over from the stage before.

    Raises:
        UserError: for whatever is wrong with it.
    """
    composed, lines = compose_train(overrides)
    HydraConfig.instance().set_config(composed)
    before = stage_before(composed)
    if before:
        typed = {override.key_or_group.lstrip("+"): override.value() for override in parse(overrides)}
        data = resolve(composed)["data"]
        added = inherited(*before, run, data, typed)
        composed, lines = compose_train([*added, *overrides])
        HydraConfig.instance().set_config(composed)
    config = resolve(composed)
    check(config, Train)
    contradictions(config)
    return composed, lines


def _new_run_dir(lines: Sequence[str], composed: DictConfig) -> list[str]:
    """The override that says which folder the run gets, its own from now on."""
    folder = _folder(composed, "run")
    if _value_of("hydra.run.dir", lines) is None:
        started = os.environ.get("WORLD_SIZE", "1") != "1" or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        if started or composed.trainer.num_nodes > 1:
            raise UserError("several machines, torchrun or SLURM: give every process the same folder, hydra.run.dir=FOLDER")
        return [f"hydra.run.dir={quoted_path(claim(folder))}"]
    run = RunFolder(folder)
    if is_first_process() and os.path.exists(run.config) and not run.never_started():
        raise UserError(f"{folder} holds a run already: go on with it by resume={folder}, or choose another folder")
    make_folder(folder)
    return []


def _folder(composed: DictConfig, kind: str) -> Path:
    try:
        return Path(os.path.expanduser(composed.hydra[kind].dir))
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"hydra.{kind}.dir: {one_line(error)}") from error


def _prepared_resume(overrides: Sequence[str]) -> list[str]:
    """The run's own overrides first, then the new ones, into its own folder."""
    run, _ = find_run(str(_value_of("resume", overrides)), "resume")
    if not os.access(run.path, os.W_OK):  # Hydra opens its log in there before anything else
        raise UserError(f"{run.path} cannot be written to: make it writable, or copy it to where you may write")
    stored = run.read_config()
    paths = [f"paths.{name}={quoted_path(path)}" for name, path in stored["paths"].items()]
    given = merged([*paths, *run.read_overrides(), *overrides])
    composed, lines = checked(given, run)
    if composed.data.get("batch_size") == "auto" and stored["data"].get("batch_size") != "auto":  # it has been found
        composed, lines = checked([*given, f"++data.batch_size={stored['data']['batch_size']}"], run)
    known, typed = flat(stored), tuple(f"{override.key_or_group}." for override in parse(overrides))
    for key, (before, now) in changed(stored, resolve(composed)).items():
        if key not in known and not f"{key}.".startswith(typed):  # flowergen did not have it yet: now it has its default
            continue
        may = any(key == prefix or key.startswith(f"{prefix}.") for prefix in MAY_CHANGE)
        if key in MUST_STAY or not may or (key == "model.adversarial_weight" and 0 in (before, now)):
            raise UserError(
                f"resume: {key} was {before} and is {now} now; "
                "a resumed run keeps its architecture, data and objective: start a new one"
            )
    lines = [line for line in lines if not line.startswith("hydra.run.dir=")]
    return [*lines, f"hydra.run.dir={quoted_path(run.path)}"]


def changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configs."""
    old, new = flat(before), flat(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _prepared_sweep(overrides: Sequence[str]) -> list[str]:
    """Every swept value checked once, those of a ``hparams_search`` file too, and a folder claimed for the sweep."""
    for key, instead in (("resume", "leave -m out"), ("hydra.run.dir", "use hydra.sweep.dir=")):
        if _value_of(key, overrides) is not None:
            raise UserError(f"{key}= has no meaning for a sweep: {instead}")
    if isinstance(_value_of("hparams_search", overrides), Sweep):
        raise UserError("hparams_search takes one name")
    sweeper = checked(sweep_samples(overrides)[0])[0].hydra.sweeper
    if not OmegaConf.is_dict(sweeper) or "_target_" not in sweeper:
        raise UserError(f"hydra.sweeper={sweeper} is no sweeper: choose one by hydra/sweeper=NAME, or leave it out")
    sweeper = OmegaConf.to_container(sweeper)
    overrides = _with_params(sweeper, overrides)
    _check_sweeper(sweeper, overrides)
    composed, lines = [checked(sample) for sample in sweep_samples(overrides)][0]  # noqa: RUF015  all of them are checked
    lines = lines[len(lines) - len(overrides) :]  # each job takes over what it needs from an autoencoder
    added = [line.startswith("++") and not override.startswith("+") for line, override in zip(lines, overrides, strict=True)]
    swept = [f"++{override}" if add else override for override, add in zip(overrides, added, strict=True)]
    folder, skip_finished = SweepFolder(_folder(composed, "sweep")), composed.sweep.skip_finished
    if _value_of("hydra.sweep.dir", overrides) is None:
        if skip_finished:
            raise UserError("sweep.skip_finished=true needs hydra.sweep.dir=FOLDER, the sweep to go on with")
        return [*swept, f"hydra.sweep.dir={quoted_path(claim(folder.path))}"]
    if folder.holds_jobs() and not skip_finished:
        raise UserError(
            f"{folder.path} holds a sweep already: go on with it by sweep.skip_finished=true, or choose another folder"
        )
    make_folder(folder.path)
    return swept


def _with_params(sweeper: Any, overrides: Sequence[str]) -> list[str]:
    """``hydra.sweeper.params`` as if typed: what was typed wins, and the rest is checked and handed on like it."""
    params = flat(sweeper.get("params") or {})
    typed = {override.key_or_group for override in parse(overrides)}
    lines = [f"{key}={value}" for key, value in params.items() if key not in typed]
    return [*lines, *overrides, *["hydra.sweeper.params=null"][: len(params)]]


def _check_sweeper(sweeper: Any, overrides: Sequence[str]) -> None:
    """What only one of the sweepers can do, or needs."""
    swept = [override for override in parse(overrides) if override.is_sweep_override()]
    if sweeper["_target_"] != "hydra_plugins.flowergen.OptunaSweeper":
        for override in swept:
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: give the values of a sweep one by one, as in KEY=1,2,3; "
                    "intervals are for hparams_search=beta_optuna"
                )
        return
    check(sweeper, OptunaSearch, "hydra.sweeper.")
    if not swept:
        raise UserError("there is nothing to search: give KEY=interval(LOW, HIGH) or KEY=1,2,3")
    if find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install optuna")


def _value_of(key: str, overrides: Sequence[str]) -> Any:
    """The last value given for a key, behind ``+`` and ``++`` too; None where there is none."""
    values = [override.value() for override in parse([line for line in overrides if line.lstrip("+").startswith(f"{key}=")])]
    return values[-1] if values else None


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
    if "RANK" in os.environ:  # of torchrun
        return int(os.environ["RANK"]) == 0
    # srun's, and Lightning's own: in a shell that srun has opened, SLURM_PROCID is 0 for all that Lightning starts
    return all(int(os.environ.get(variable, "0")) == 0 for variable in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m flowergen.train --help lists the options")
