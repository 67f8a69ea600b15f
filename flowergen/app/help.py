"""The text of ``--help``: the head comment of ``conf/COMMAND.yaml``, and its keys with their comments."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from flowergen.config import conf_dir
from flowergen.config.overrides import Composer

KEY = re.compile(r"(?P<indent> *)(?P<name>\w+):.*?(?: # (?P<comment>.*))?")


def help_text(name: str) -> str:
    """Return ``conf/NAME.yaml`` with its head comment as plain text."""
    head, body = _parts(Path(conf_dir()) / f"{name}.yaml")
    return "\n".join([*head, *body])


def train_help(overrides: Sequence[str]) -> str:
    """Return the help of ``train``: its commands, its config groups, and each key with its value and comment.

    The overrides, as typed with paths quoted, choose the groups whose keys are listed; a ``UserError`` if one is invalid.
    """
    composed, _ = Composer().compose(overrides)
    config = cast(dict[str, Any], OmegaConf.to_container(composed))
    choices = config.pop("hydra")["runtime"]["choices"]
    conf = Path(conf_dir())
    groups: dict[str, list[str]] = {}
    for path in sorted(conf.glob("**/*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        if group not in (".", "pictures") and not group.startswith("hydra"):  # pictures is part of each data set
            groups.setdefault(group, []).append(path.stem)
    comments = dict(_comments(conf / "train.yaml", ""))
    included_first = sorted(choices.items(), key=lambda choice: "@" not in choice[0])  # such as "pictures@data" before "data"
    for choice, option in included_first:
        group, _, package = choice.partition("@")
        package = package or group.replace("/", ".")
        if (conf / group / f"{option}.yaml").exists():  # and not one from --config-dir
            comments |= _comments(conf / group / f"{option}.yaml", f"{package}.")
    head, _ = _parts(conf / "train.yaml")
    listed = [f"{group}: {', '.join(names)}" for group, names in sorted(groups.items())]
    about_keys = "\nKeys, with their values for this command line; ${KEY} is the value of another key:\n"
    return "\n".join([*head, "\nGroups, chosen with GROUP=NAME:\n", *listed, about_keys, *_keys(config, "", comments)])


def _parts(path: Path) -> tuple[list[str], list[str]]:
    """Return the lines of a YAML file's head comment, as plain text, and the other lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((row for row, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end]], lines[end:]


def _comments(path: Path, package: str) -> Iterator[tuple[str, str]]:
    """Yield dotted key and comment of each commented key of a YAML file, after those of the files that it includes."""
    text = path.read_text(encoding="utf-8")
    for name in yaml.safe_load(text).get("defaults", []):
        if isinstance(name, str) and name != "_self_":
            yield from _comments(path.with_name(f"{name}.yaml"), package)
    parents: list[str] = []
    for line in text.splitlines():
        if found := KEY.fullmatch(line):
            parents[len(found["indent"]) // 2 :] = [found["name"]]
            if found["comment"]:
                yield package + ".".join(parents), found["comment"]


def _keys(node: object, key: str, comments: dict[str, str]) -> Iterator[str]:
    """Yield one line for each key, as it would be typed."""
    comment = f"  # {comments[key]}" if key in comments else ""
    if isinstance(node, dict) and node:
        if comment:
            yield f"{key}:{comment}"
        for name, child in node.items():
            yield from _keys(child, f"{key}.{name}".lstrip("."), comments)
    else:
        text = yaml.safe_dump(node, default_flow_style=True, width=10_000, allow_unicode=True)
        value = text.removesuffix("\n").removesuffix("\n...")
        yield f"{key}={value}{comment}"
