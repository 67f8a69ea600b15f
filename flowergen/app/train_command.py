"""Phase 1 of ``train``: compose and check the command line, without importing torch."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowergen.app.contradictions import contradictions
from flowergen.app.help import train_help
from flowergen.config.check import check, schema_of
from flowergen.config.overrides import Composer, default_choice, flat, parse, resolve
from flowergen.config.schema import Mlflow, OptunaSearch, Trackio, Train, Wandb
from flowergen.errors import UserError, one_line
from flowergen.hydra_internals import BASIC_SWEEPER, argument_parser
from flowergen.quoting import HUB, quote_paths, quoted, quoted_path, quoted_value
from flowergen.runs.hub import pinned
from flowergen.runs.run_folder import RunFolder, create_unused_folder, find_run, is_first_process, make_folder
from flowergen.runs.stages import (
    STAGES,
    architecture_of,
    completed,
    inherited,
    pretrained_folder,
    previous_stage,
    settings_of,
    settings_of_pretrained,
)
from flowergen.sweeps.sweep_folder import SweepFolder
from flowergen.sweeps.swept_values import sweep_samples

FIXED_ON_RESUME = (
    "trainer.accumulate_grad_batches",  # the position of a mid-epoch checkpoint is counted in these parts of an optimiser step
    "trainer.channels_last",  # the optimiser's state keeps its layout, and torch's fused optimisers ignore it on a CPU
)
# keys that may change when a run is resumed; changing any other would make it a different run
CHANGEABLE_ON_RESUME = (
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


def prepare_train(argv: Sequence[str]) -> list[str]:
    """Phase 1 of ``train``: check the command line without importing torch, and make a folder only if it is valid.

    Args:
        argv: arguments without the program name.

    Returns:
        The arguments for ``hydra.main``: paths quoted, a resumed run's own overrides first, a run folder claimed.

    Raises:
        UserError: the command line is invalid; one line says what to do.
    """
    parser = argument_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(list(argv))  # allows "seed=1 -m model.beta=1,2"
    if args.hydra_help or args.cfg or args.info or args.shell_completion:
        return list(argv)
    for flag in ("config_name", "config_path", "package", "experimental_rerun"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is not supported: pass your own configs with --config-dir DIR")
    multirun = args.multirun or value_of("hparams_search", args.overrides) is not None
    overrides = quote_paths(args.overrides, multirun)
    if args.config_dir:
        if not os.path.isdir(args.config_dir):
            raise UserError(f"--config-dir {args.config_dir} is not an existing folder")
        # as an override, it is passed to the jobs of a sweep and stored in the run folder
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{Path(args.config_dir).absolute()}')}]")
    if args.help:
        print(train_help(overrides), flush=True)
        sys.exit()
    if multirun:
        return ["--multirun", *_prepared_sweep(overrides)]
    if value_of("sweep.skip_finished", overrides):
        raise UserError("sweep.skip_finished is for a sweep: add -m, or resume a single run with resume=RUN")
    if value_of("resume", overrides):
        return _prepared_resume(overrides)
    composed, lines = checked(overrides)
    return [*lines, *_new_run_dir(lines, composed)]


def checked(
    overrides: Sequence[str], run: RunFolder | None = None, composer: Composer | None = None
) -> tuple[DictConfig, list[str]]:
    """Compose, resolve and check a config.

    Args:
        overrides: as typed, paths quoted.
        run: the resumed run, if any.
        composer: for a command that checks several configs.

    Returns:
        The composed config, and the overrides in Hydra's form, those inherited from the previous stage or ``init`` first.

    Raises:
        UserError: the config is invalid.
    """
    composed, lines = _composed(overrides, run, composer or Composer())
    _check(resolve(composed))
    return composed, lines


def _composed(overrides: Sequence[str], run: RunFolder | None, composer: Composer) -> tuple[DictConfig, list[str]]:
    """Compose a config with what it inherits; see ``checked``."""
    if run is None:
        overrides = [_pinned(line, override) for line, override in zip(overrides, parse(overrides), strict=True)]
    typed = {override.key_or_group.lstrip("+"): override.value() for override in parse(overrides)}
    if run is None and typed.get("init"):
        overrides = _started_from(str(typed["init"]), overrides, typed, composer)
    composed, lines = composer.compose(overrides)
    if run is None and composed.init and "init" not in typed:
        raise UserError("init belongs on the command line: the model's settings come from that run")
    previous = previous_stage(composed)
    if previous:
        added = inherited(*previous, run, resolve(composed)["data"], typed)
        composed, lines = composer.compose([*added, *overrides])
    return composed, lines


def _check(config: dict[str, Any]) -> None:
    """Check a resolved config, and that the packages of the chosen trackers are installed."""
    check(config, Train)
    contradictions(config)
    for node in (config["logger"] or {}).values():
        schema = schema_of(node)
        if schema is None or schema not in (Wandb, Mlflow, Trackio):
            continue
        package = schema.__name__.lower()
        if getattr(find_spec(package), "origin", None) is None:  # a folder of that name, such as W&B makes, is no package
            raise UserError(f"logger={package} needs {package}: pip install 'flowergen[{package}]'")


def _pinned(line: str, override: Override) -> str:
    """Name a repository of the hub by its commit, so that a resumed run and all processes use the same files."""
    key, value = override.key_or_group, override.value()
    if key in ("init", *STAGES) and isinstance(value, str) and value.startswith(HUB):
        return f"{key}={quoted(pinned(value, key))}"
    return line


def _started_from(init: str, overrides: Sequence[str], typed: Mapping[str, Any], composer: Composer) -> list[str]:
    """Add what a new run takes over from the run that it starts from: model, form of its pictures, split of the same data."""
    folder = pretrained_folder(init, "init")
    lines = settings_of(init, typed) if folder is None else settings_of_pretrained(init, folder, typed)
    _refuse_other_recipe(init, lines, overrides, typed, composer)
    overrides = [*lines, *overrides]
    if folder is not None:
        return overrides
    composed, _ = composer.compose(overrides)
    of_data = inherited("init", init, None, resolve(composed)["data"], typed)
    model = cast(dict[str, Any], OmegaConf.to_container(composed.model))
    return [*architecture_of(init, model, typed), *(line.removeprefix("++") for line in of_data), *overrides]


def _refuse_other_recipe(
    init: str, lines: Sequence[str], overrides: Sequence[str], typed: Mapping[str, Any], composer: Composer
) -> None:
    """Refuse a recipe for another model than that of ``init``, which would be trained with that recipe's other settings."""
    own = next((line.removeprefix("model=") for line in lines if line.startswith("model=")), None)
    if own is None or not typed.get("experiment"):
        return
    recipe = [line for line in overrides if line.startswith(("experiment=", "hydra.searchpath="))]
    chosen = composer.compose(recipe)[0].hydra.runtime.choices["model"]
    if chosen not in (own, default_choice("model")):
        raise UserError(
            f"experiment={typed['experiment']} is a recipe for model={chosen}, and init={init} is of model={own}: "
            "use experiment=finetune, or leave init out"
        )


def _new_run_dir(lines: Sequence[str], composed: DictConfig) -> list[str]:
    """Make the run folder; return the override that sets it, unless it was typed."""
    if value_of("hydra.run.dir", lines) is None:
        started = os.environ.get("WORLD_SIZE", "1") != "1" or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        if started or composed.trainer.num_nodes > 1:
            raise UserError("torchrun, SLURM or several machines: give every process the same hydra.run.dir=FOLDER")
        return [f"hydra.run.dir={quoted_path(new_folder(composed))}"]
    folder = _folder(composed, "run")
    run = RunFolder(folder)
    if is_first_process() and os.path.exists(run.config) and not run.never_started():
        raise UserError(f"{folder} already contains a run: resume it with resume={folder}, or choose another folder")
    make_folder(folder)
    return []


def new_folder(composed: DictConfig) -> Path:
    """Make the folder of a new run, which no other process has claimed."""
    return create_unused_folder(_folder(composed, "run"))


def _folder(composed: DictConfig, kind: str) -> Path:
    try:
        return Path(os.path.expanduser(composed.hydra[kind].dir))
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"hydra.{kind}.dir: {one_line(error)}") from error


def _prepared_resume(overrides: Sequence[str]) -> list[str]:
    """Return the run's own overrides, then the new ones, and its own folder as run folder."""
    run, _ = find_run(str(value_of("resume", overrides)), "resume")
    if not os.access(run.path, os.W_OK):  # Hydra opens its log there first
        raise UserError(f"{run.path} cannot be written to: make it writable, or copy it to a writable folder")
    if run.shared_weights.is_file():
        raise UserError(f"resume={run.path} is a shared run, without the state of training: start from it with init={run.path}")
    stored = run.read_config()
    paths = [f"paths.{name}={quoted_path(path)}" for name, path in stored["paths"].items()]
    overrides = [line for line in overrides if not _is_pinned_already(line, stored)]
    regrouped = {"model", "model/network"} & {override.key_or_group for override in parse(overrides)}
    older = [] if regrouped else completed(stored)
    combined, composer = merged([*paths, *run.read_overrides(), *older, *overrides]), Composer()
    composed, lines = _composed(combined, run, composer)
    if flat(resolve(composed)).get("data.batch_size") == "auto" and stored["data"].get("batch_size") != "auto":  # already found
        combined.append(f"++data.batch_size={stored['data']['batch_size']}")
        composed, lines = _composed(combined, run, composer)
    config = resolve(composed)
    known, now, typed = flat(stored), flat(config), tuple(f"{override.key_or_group}." for override in parse(overrides))
    differing = changed(stored, config)
    of_recipe = [key for key in differing if key in known and key in now and not f"{key}.".startswith(typed)]
    kept = [key for key in of_recipe if not _is_changeable(key, *differing[key]) and not key.endswith("_target_")]
    if kept:  # the default, or the recipe's value, was another one when the run was started
        composed, lines = _composed([*combined, *(f"++{key}={quoted_value(known[key])}" for key in kept)], run, composer)
        config = resolve(composed)
    _check(config)
    for key, (before, after) in changed(stored, config).items():
        if key not in known and not f"{key}.".startswith(typed):  # a newer key, which takes its default
            continue
        if not _is_changeable(key, before, after):
            raise UserError(
                f"resume: {key} was {before} and is {after} now; "
                "a resumed run keeps its architecture, data and objective: start a new one"
            )
    lines = [line for line in lines if not line.startswith("hydra.run.dir=")]
    return [*lines, f"hydra.run.dir={quoted_path(run.path)}"]


def merged(overrides: Sequence[str]) -> list[str]:
    """Keep only the last override of each key: Hydra refuses two choices for a group.

    >>> merged(["model=vae", "seed=1", "model=vae", "seed=2"])
    ['model=vae', 'seed=2']
    """
    return list({override.key_or_group: str(override.input_line) for override in parse(overrides)}.values())


def changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ between two configs, with both values."""
    old, new = flat(before), flat(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _is_pinned_already(line: str, stored: Mapping[str, Any]) -> bool:
    """Return True if an override names a repository of the hub that the run has pinned to a commit."""
    key, _, value = line.partition("=")
    return key in ("init", *STAGES) and value.startswith(HUB) and str(stored.get(key)).startswith(f"{value}@")


def _is_changeable(key: str, before: Any, after: Any) -> bool:
    """Return True if a key may have another value when a run is resumed."""
    if key in FIXED_ON_RESUME or (key == "model.adversarial_weight" and 0 in (before, after)):
        return False
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in CHANGEABLE_ON_RESUME)


def _prepared_sweep(overrides: Sequence[str]) -> list[str]:
    """Check every swept value once, including those of a ``hparams_search`` file, and claim a folder for the sweep."""
    alternatives = {"resume": "leave -m out", "init": "start one run at a time", "hydra.run.dir": "use hydra.sweep.dir="}
    for key, instead in alternatives.items():
        if value_of(key, overrides) is not None:
            raise UserError(f"{key}= has no meaning for a sweep: {instead}")
    if isinstance(value_of("hparams_search", overrides), Sweep):
        raise UserError("hparams_search takes one name")
    composer = Composer()
    sweeper = _composed(sweep_samples(overrides)[0], None, composer)[0].hydra.sweeper
    if not OmegaConf.is_dict(sweeper) or "_target_" not in sweeper:
        raise UserError(f"hydra.sweeper={sweeper} is not a sweeper: choose one with hydra/sweeper=NAME, or leave it out")
    sweeper = OmegaConf.to_container(sweeper)
    overrides = _with_params(sweeper, overrides)
    _check_sweeper(sweeper, overrides)
    composed, lines = [checked(sample, composer=composer) for sample in sweep_samples(overrides)][0]  # noqa: RUF015  checks all
    lines = lines[len(lines) - len(overrides) :]  # drop inherited overrides, which each job adds itself
    added = [line.startswith("++") and not override.startswith("+") for line, override in zip(lines, overrides, strict=True)]
    swept = [f"++{override}" if add else override for override, add in zip(overrides, added, strict=True)]
    folder, skip_finished = SweepFolder(_folder(composed, "sweep")), composed.sweep.skip_finished
    if value_of("hydra.sweep.dir", overrides) is None:
        if skip_finished:
            raise UserError("sweep.skip_finished=true needs hydra.sweep.dir=FOLDER, the sweep to continue")
        return [*swept, f"hydra.sweep.dir={quoted_path(create_unused_folder(folder.path))}"]
    if folder.has_jobs() and not skip_finished:
        raise UserError(
            f"{folder.path} already contains a sweep: continue it with sweep.skip_finished=true, or choose another folder"
        )
    make_folder(folder.path)
    return swept


def _with_params(sweeper: Any, overrides: Sequence[str]) -> list[str]:
    """Turn ``hydra.sweeper.params`` into overrides, checked and passed on like typed ones, which take precedence."""
    params = flat(sweeper.get("params") or {})
    typed = {override.key_or_group for override in parse(overrides)}
    lines = [f"{key}={value}" for key, value in params.items() if key not in typed]
    return [*lines, *overrides, *["hydra.sweeper.params=null"][: len(params)]]


def _check_sweeper(sweeper: Any, overrides: Sequence[str]) -> None:
    """Check what only one of the sweepers supports or requires."""
    swept = [override for override in parse(overrides) if override.is_sweep_override()]
    intervals = [override.input_line for override in swept if not override.is_discrete_sweep()]
    if sweeper["_target_"] == BASIC_SWEEPER and intervals:
        raise UserError(
            f"{intervals[0]}: give the values of a sweep one by one, as in KEY=1,2,3; "
            "intervals are for hparams_search=beta_optuna"
        )
    if sweeper["_target_"] != "hydra_plugins.flowergen.OptunaSweeper":
        return
    check(sweeper, OptunaSearch, "hydra.sweeper.")
    if not swept:
        raise UserError("there is nothing to search: give KEY=interval(LOW, HIGH) or KEY=1,2,3")
    if find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install optuna")


def value_of(key: str, overrides: Sequence[str]) -> Any:
    """Return the last value given for a key, with or without ``+`` or ``++``; None if there is none."""
    values = [override.value() for override in parse([line for line in overrides if line.lstrip("+").startswith(f"{key}=")])]
    return values[-1] if values else None


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m flowergen.train --help lists the options")
