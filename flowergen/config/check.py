"""Phase 1 of the checks: validate a composed config against the schema before heavy imports."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from flowergen.config.rules import Rule
from flowergen.config.schema import BY_TARGET
from flowergen.config.schema_data import HuggingFace
from flowergen.errors import UserError

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def check(node: dict[str, Any], schema: type, path: str = "", root: dict[str, Any] | None = None) -> None:
    """Check keys, types and ranges of a composed and resolved config, or of its ``node`` at ``path``, recursively.

    Raises:
        UserError: names the first invalid key, what it must be, and for an unknown key the closest valid one.
    """
    root = node if root is None else root
    hints = get_type_hints(schema, include_extras=True)
    for key in node:
        if key not in hints:
            raise unknown_key(f"{path}{key}", root)
    for field in fields(schema):
        where = f"{path}{field.name}"
        if field.name in node:
            _check_value(node[field.name], hints[field.name], where, root)
        elif field.default is MISSING:
            raise UserError(f"{where} is missing")


def schema_of(node: Any) -> type | None:
    """Return the dataclass that describes a node, by its ``_target_``; None if there is none."""
    return BY_TARGET.get(str(node.get("_target_", ""))) if isinstance(node, Mapping) else None


def data_options(data: Mapping[str, Any]) -> str:
    """Return the options that choose a data set, as they are typed: ``data=NAME``."""
    name = data.get("name")
    named = schema_of(data) is HuggingFace and name != "huggingface"
    return f"data=huggingface data.name={name}" if named else f"data={name}"


def schema_at(path: str, config: dict[str, Any], schema: type | None) -> type | None:
    """Return the dataclass of the node at a dotted path of a config, whose own is ``schema``; None if there is none."""
    node: Any = config
    for part in filter(None, path.split(".")):
        hint = get_type_hints(schema).get(part) if schema else None
        node = node.get(part) if isinstance(node, dict) else None
        own = hint if isinstance(hint, type) and is_dataclass(hint) else None
        schema = (schema_of(node) if isinstance(node, dict) and "_target_" in node else own) if node is not None else None
    return schema


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, including those that its schema allows to be omitted."""
    if not isinstance(node, dict):
        return
    schema = schema_of(node)
    known = [field.name for field in fields(schema)] if schema else []
    for key in dict.fromkeys([*node, *known]):
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
            yield from all_keys(node.get(key), f"{prefix}{key}.")


def unknown_key(key: str, config: dict[str, Any]) -> UserError:
    """Return the error for a key that does not exist, naming the closest valid one."""
    keys = [known for known in all_keys(config) if known != key and not known.startswith("hydra")]
    parent, _, last = key.rpartition(".")
    by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}
    near = (
        [known for known in keys if known.rsplit(".", 1)[-1] == last]
        or difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        or [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1)]
    )
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    if near:
        hint = f"did you mean {near[0]}?"
    elif siblings and (parent or "model" not in config):
        hint = f"there are {', '.join(siblings)}"
    else:
        hint = "python -m flowergen.train --help lists the keys"
    if key == "data.root":
        hint = "for pictures of your own, use data=image_folder data.root=..."
    return UserError(f"there is no key {key}: {hint}")


def _check_value(value: Any, hint: Any, where: str, root: dict[str, Any]) -> None:
    if value == "???":
        raise UserError(f"{where} must be given: {where}=...")
    if isinstance(hint, type) and is_dataclass(hint):
        by_target = schema_of(value)
        if not isinstance(value, dict):
            raise UserError(f"{where}={value} must be a group of keys")
        if by_target is not None or "_target_" not in value:
            check(value, by_target or hint, f"{where}.", root)
        return
    problem = _problem(value, hint)
    if problem:
        raise UserError(f"{where}={as_typed(value)} {problem}")
    if isinstance(value, dict):  # any node: check the nested nodes that have a schema
        if schema := schema_of(value):
            check(value, schema, f"{where}.", root)
        else:
            for key, child in value.items():
                if isinstance(child, dict):
                    _check_value(child, Any, f"{where}.{key}", root)


def _problem(value: Any, hint: Any) -> str:
    """Describe what is wrong with a value; empty if it is valid."""
    if hint is Any:
        return ""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *rules = get_args(hint)
        broken = (rule.problem(value) for rule in rules if isinstance(rule, Rule))  # PATH and TEXT are no rules
        return _problem(value, inner) or next(filter(None, broken), "")
    if origin in (Union, UnionType):
        problems = [_problem(value, option) for option in get_args(hint)]
        return "" if "" in problems else " or ".join(problems).replace(" or must be", " or")
    if origin is Literal:
        choices = [as_typed(choice) for choice in get_args(hint)]
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return ""
        near = difflib.get_close_matches(str(value), choices, n=1)
        return f"must be {' or '.join(choices)}" + (f": did you mean {near[0]}?" if near else "")
    if origin is list:
        if not isinstance(value, list):
            return "must be a list, such as [1,2]"
        return next(filter(None, (_problem(item, get_args(hint)[0]) for item in value)), "")
    if origin is dict or hint is dict:
        children = value.values() if isinstance(value, dict) else [value]
        return "" if all(child is None or isinstance(child, dict) for child in children) else "must be a group of keys"
    wanted = (int, float) if hint is float else hint
    correct = isinstance(value, wanted) and not (isinstance(value, bool) and hint is not bool)
    finite = not isinstance(value, float) or value - value == 0
    return "" if correct and finite else f"must be {KINDS[hint]}"


def as_typed(value: Any) -> str:
    """Write a value as on the command line.

    >>> as_typed([48, 64]), as_typed(None)
    ('[48,64]', 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(as_typed(item) for item in value)}]" if isinstance(value, list) else str(value)
