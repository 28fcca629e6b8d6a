"""Configurations as trees of dataclasses: text and YAML read as the types of their fields, dotted keys, and what two trees differ in.

One set of rules reads `key=value` of experiments, the keys of commands, and YAML files: a scalar stays text until the type of its key
is known. Numbers are decimal (010 is ten, and 1:30 is no number), 5e9 is a whole number, and a text such as `no` or `1e5` stays as written.
"""

from __future__ import annotations

import math
import operator
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from llm_jax.core.errors import one_of

NONE = ("", "null", "Null", "NULL", "~")
"""Texts that mean None, where a type allows it."""
BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a file or folder"}


class WrongType(ValueError):
    """A value that isn't of a key's type. Its message ends an error line: "must be a whole number"."""

    def __init__(self, value: Any, kind: Any):
        super().__init__(expected(kind, str(value)))


def coerce(value: Any, kind: Any) -> Any:
    """A value as a type: from text (of a command line or YAML), or from a Python value that has the type already.

    kind: int, float, bool, str, Path, a Literal, a tuple, list or dict of these, or a union with None. Raises WrongType.

    >>> coerce("5e9", int), coerce("010", int), coerce("1e-3", float), coerce("null", int | None), coerce("[a, b]", tuple[str, ...])
    (5000000000, 10, 0.001, None, ('a', 'b'))
    >>> coerce("8,16", tuple[int, ...]), coerce("{data: 4}", dict[str, int]), coerce("no", str), coerce("no", bool)
    ((8, 16), {'data': 4}, 'no', False)
    """
    options = union_members(kind)
    if NoneType in options and (value is None or (isinstance(value, str) and value in NONE)):
        return None
    for option in options:
        try:
            return converted(value, option)
        except (ValueError, TypeError, OverflowError, AttributeError, yaml.YAMLError):
            continue
    raise WrongType(value, kind)


def converted(value: Any, kind: Any) -> Any:
    """A value as one type that is no union. Raises ValueError, TypeError, OverflowError, AttributeError or YAMLError."""
    is_text, origin = isinstance(value, str), get_origin(kind)
    if origin is Literal:
        choices = [choice for choice in get_args(kind) if value == (str(choice) if is_text else choice)]
        return choices[0] if choices else fail()
    if origin in (tuple, list):
        return origin(converted_items(value, kind))
    if origin is dict:
        tree = read_yaml_text(value) if is_text else value
        return {str(key): coerce(entry, get_args(kind)[1]) for key, entry in tree.items()}
    if kind is Path:
        return Path(value).expanduser() if str(value) else fail()
    if kind is bool:
        found = BOOLS.get(value.strip().lower()) if is_text else value
        return found if isinstance(found, bool) else fail()
    if kind is str:
        return value if is_text else fail()
    if isinstance(value, bool):
        fail()
    if kind is float:
        return float(value)
    if kind is int:
        return whole(value) if is_text else operator.index(value)
    raise TypeError(f"{kind}: no text is read as this type")


def converted_items(value: Any, kind: Any) -> list[Any]:
    """The items of a tuple or list. Numbers and paths may be written without brackets: 8,16."""
    kinds = [k for k in get_args(kind) if k is not Ellipsis]
    if isinstance(value, str):
        bare = kinds[0] is not str and not value.lstrip().startswith("[")
        value = [part.strip() for part in value.split(",")] if bare else read_yaml_text(value)
    if not isinstance(value, (list, tuple)):
        fail()
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return [coerce(item, one) for item, one in zip(value, kinds, strict=True)]
    return [coerce(item, kinds[0]) for item in value]


def whole(text: str) -> int:
    """A whole number, written as 5000 or 5e3."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number == math.floor(number) else fail()


def fail() -> Any:
    """Raises ValueError, where an expression is needed."""
    raise ValueError


def union_members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is no union, alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def expected(kind: Any, value: str) -> str:
    """The end of an error line about a value of another type than its key's.

    >>> expected(int | None, "x")
    'must be a whole number, or null for none'
    """
    options = [option for option in union_members(kind) if option is not NoneType]
    first, origin = options[0], get_origin(options[0])
    if origin is Literal:
        return one_of(value, [str(choice) for choice in get_args(first)])
    if origin is dict:
        return f"must be a table of names and values, {{name: {NAMES[get_args(first)[1]]}, ...}}"
    if origin in (tuple, list):
        return "must be a list, [first, second]"
    return f"must be {' or '.join(NAMES[option] for option in options)}" + (", or null for none" if NoneType in union_members(kind) else "")


class TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose plain scalars stay text (but null): their meaning is up to the type of their key."""

    yaml_implicit_resolvers = {first: [("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"))] for first in ("~", "n", "N", "")}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError for a key that is given twice."""
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice}: is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml_text(text: str) -> Any:
    """YAML as dicts, lists, None and text. Raises yaml.YAMLError."""
    return yaml.load(text, TextLoader)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = value
    return out


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two flat configurations differ in, as "key: old → new"."""
    keys = [*old, *(k for k in new if k not in old)]
    return [f"{k}: {shown(old.get(k))} → {shown(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def shown(value: Any) -> str:
    """A value in an error line."""
    return "unset" if value is None else str(value)
