"""Configurations as trees of dataclasses: text and YAML read as the types of their fields, dotted keys,
differences.

One set of rules reads `key=value` of experiments, the keys of commands, and YAML files: a scalar stays text
until the type of its key is known. Numbers are decimal (010 is ten, and 1:30 is no number), 5e9 is a whole
number, and a text such as `no` or `1e5` stays as written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from llm_jax.core.arithmetic import FLOAT32, fits_float32
from llm_jax.core.errors import UserError, closest, one_of
from llm_jax.core.files import user_path

Config = TypeVar("Config")
CLASS_OF = "class_of"
"""In a field's metadata: a function from a name to a dataclass, for a field whose class is chosen by the key
`name` of its group (objective=NAME, objective.KEY=VALUE). All these classes have a field `name`, and defaults
for all their fields."""

NONE = ("", "null", "Null", "NULL", "~")
"""Texts that mean None, where a type allows it."""
BOOLS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a file or folder",
}


class WrongType(ValueError):
    """A value that isn't of a key's type. Its message ends an error line: "must be a whole number"."""

    def __init__(self, value: Any, kind: Any):
        super().__init__(expected(kind, str(value)))


def coerce(value: Any, kind: Any) -> Any:
    """A value as a type: from text (of a command line or YAML), or from a Python value that has the type
    already.

    kind: int, float, bool, str, Path, a Literal, a tuple, list or dict of these, or a union with None. Raises
    WrongType.

    >>> coerce("5e9", int), coerce("010", int), coerce("1e-3", float), coerce("null", int | None), coerce("[a, b]", tuple[str, ...])
    (5000000000, 10, 0.001, None, ('a', 'b'))
    >>> coerce("8,16", tuple[int, ...]), coerce("{data: 4}", dict[str, int]), coerce("no", str), coerce("no", bool)
    ((8, 16), {'data': 4}, 'no', False)
    """  # noqa: E501
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
    """A value as one type that is no union. Raises ValueError, TypeError, OverflowError, AttributeError or
    YAMLError."""
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
        return user_path(value) if str(value) else fail()
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
        item = get_args(first)[0]
        return (
            f"must be {NAMES[item].removeprefix('a ')}s with commas between them"
            if item in (int, float)
            else "must be a list, [first, second]"
        )
    names = " or ".join(NAMES.get(option) or f"a {option.__name__}" for option in options)
    return f"must be {names}" + (", or null for none" if NoneType in union_members(kind) else "")


MOST_NESTED = 100
"""Tables and lists within each other in YAML that is read."""
NULL = ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"))


class TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose plain scalars stay text (but null): their meaning is up to the type of their key."""

    yaml_implicit_resolvers = {first: [NULL] for first in ("~", "n", "N", "")}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError for a key that is given twice."""
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice}: is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml_text(text: str) -> Any:
    """YAML as dicts, lists, None and text.

    Raises yaml.YAMLError: also for a tag (which could make an object), for an alias (a few lines of them
    stand for a tree of any size), and for what is nested too deeply.
    """
    depth = 0
    for event in yaml.parse(text, TextLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:  # PyYAML recurses, and would end the process
            raise yaml.YAMLError("it is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*NAME) is not read; write its value out")
    return yaml.load(text, TextLoader)


class TextDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """YAML in which text that other readers would take for a number (1e-3) is quoted."""


TextDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def write_yaml_text(config: Any) -> str:
    """A tree of dataclasses as YAML, with all its keys."""
    return yaml.dump(dataclasses.asdict(config), Dumper=TextDumper, sort_keys=False, allow_unicode=True)


def field_types(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields; looked up once for each class."""
    if kind not in FIELD_TYPES:
        hints = get_type_hints(kind)
        FIELD_TYPES[kind] = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    return FIELD_TYPES[kind]


FIELD_TYPES: dict[type, dict[str, Any]] = {}


def from_tree(base: Config, tree: Any, prefix: str = "") -> Config:
    """A tree of dataclasses with the values of nested dicts put in, each read as its key's type; a whole
    table is replaced.

    Raises UserError, naming the key, for keys that there are not, groups that are none, and values of another
    type.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{prefix.removesuffix('.')}: must be a table of keys and values")
    kinds, values = field_types(type(base)), {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            near = closest(key, [prefix + known for known in all_keys(base)])
            raise UserError(f"{key}: there is no key {key!r}" + (f"; did you mean '{near}'?" if near else ""))
        part = getattr(base, name)
        if dataclasses.is_dataclass(part):
            if isinstance(value, dict) and value.get("name") and (class_of := chooser(base, name)):
                part = class_of(str(value["name"]))()
            values[name] = from_tree(part, value, f"{key}.")
        else:
            values[name] = coerced(key, value, kinds[name])
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def typed(config: Config, prefix: str = "") -> Config:
    """A tree of dataclasses with each value as its key's type (1 as 1.0, a list as a tuple): Python checks
    none when a file makes one.

    Raises UserError, naming the key, for a value of another type.
    """
    kinds, values = field_types(type(config)), {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value, kind = getattr(config, f.name), kinds[f.name]
        group = dataclasses.is_dataclass(kind) and isinstance(value, kind)  # type: ignore[arg-type]
        values[f.name] = (
            typed(value, f"{prefix}{f.name}.") if group else coerced(prefix + f.name, value, kind)
        )
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def with_values(config: Config, pairs: Sequence[tuple[str, Any]]) -> Config:
    """A tree of dataclasses with key=value pairs applied, in order; those that choose a class first. A value
    is text, or has its type.

    Raises UserError for keys that there are not (with the nearest one), and for values of another type.
    """
    config = typed(config)
    for key, value in sorted(pairs, key=lambda pair: not chooses_class(config, pair[0])):
        path, kind = find_key(config, key, value)
        if dataclasses.is_dataclass(kind):
            part = functools.reduce(getattr, path, config)
            config = config if part.name == value else replaced(config, path, kind())  # type: ignore[attr-defined, operator]
            continue
        if kind is str and isinstance(value, str) and "${" in value:
            raise UserError(
                f"{key}={value}: must be text without ${{...}}, which is not expanded here; write out the "
                "value"
            )
        config = replaced(config, path, coerced(key, value, kind))
    return config


def coerced(key: str, value: Any, kind: Any) -> Any:
    """The value of a key as a type. Raises UserError, naming the key, for a value of another type."""
    try:
        return coerce(value, kind)
    except WrongType as error:
        raise UserError(f"{key}={value}: {error}") from error


def chooser(config: Any, name: str) -> Callable[[str], type] | None:
    """The function from a name to the class of a field of a dataclass; None where its class is not chosen by
    a name."""
    return next((f.metadata.get(CLASS_OF) for f in dataclasses.fields(config) if f.name == name), None)


def chooses_class(config: Any, key: str) -> bool:
    """Whether a key, group=NAME or group.name=NAME, chooses the class of a group."""
    *parents, name = key.removesuffix(".name").split(".")
    for parent in parents:
        config = getattr(config, parent, None)
    return dataclasses.is_dataclass(config) and chooser(config, name) is not None


def replaced(config: Any, path: list[str], value: Any) -> Any:
    """A tree of dataclasses, or a dict, with one value set."""
    if not path:
        return value
    if isinstance(config, dict):
        return {**config, path[0]: value}
    return dataclasses.replace(config, **{path[0]: replaced(getattr(config, path[0]), path[1:], value)})


def find_key(config: Any, key: str, value: Any) -> tuple[list[str], Any]:
    """The path to a value of a tree, or to an entry of one of its dicts, and its type; UserError if there is
    none.

    The type of a group whose class is chosen is the class that `value` names. What follows a dict's name is
    one entry, dots and all: data.mixture.text.jsonl=1 is of the source text.jsonl.
    """
    at, parts = config, key.split(".")
    for depth, part in enumerate(parts):
        kinds = field_types(type(at))
        if part not in kinds:
            near = closest(key, all_keys(config))
            raise UserError(
                f"{key}={value}: there is no key {key!r}; "
                + (f"did you mean '{near}'?" if near else "--show prints all keys")
            )
        if (class_of := chooser(at, part)) and parts[depth + 1 :] in ([], ["name"]):
            return parts[: depth + 1], class_of(str(value))
        at = getattr(at, part)
        if get_origin(kinds[part]) is dict and depth < len(parts) - 1:
            return [*parts[: depth + 1], ".".join(parts[depth + 1 :])], get_args(kinds[part])[1]
        if not dataclasses.is_dataclass(at):
            if depth < len(parts) - 1:
                raise UserError(
                    f"{key}={value}: {'.'.join(parts[: depth + 1])} is a single value, it has no "
                    f"{parts[depth + 1]!r}"
                )
            return parts, kinds[part]
    raise UserError(f"{key}={value}: is a group; set one of its keys: {', '.join(field_types(type(at)))}")


def all_keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dataclasses."""
    keys = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        keys += (
            all_keys(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
        )
    return keys


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = value
    return out


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raises UserError for a number of a tree of dataclasses that the types of a computation don't hold:
    beyond float32 it would count as 0 or as infinite, beyond int32 it is an error somewhere. (Seeds have 32
    bits, and numbers of bytes 64.)
    """
    for key, value in flat(dataclasses.asdict(config), prefix).items():
        bits = 63 if key.endswith("_bytes") else 32 if key.endswith("seed") else 31
        for number in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(number, float) and not fits_float32(number):
                raise UserError(
                    f"{key}={number}: must be 0, or from {FLOAT32[0]:.2g} to {FLOAT32[1]:.2g} as float32 "
                    "holds it"
                )
            if isinstance(number, int) and abs(number) >= 2**bits:
                raise UserError(f"{key}={number}: must be below 2^{bits}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The differences of two flat configurations, each as "key: old → new"."""
    keys = [*old, *(k for k in new if k not in old)]
    return [f"{k}: {shown(old.get(k))} → {shown(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def shown(value: Any) -> str:
    """A value in an error line."""
    return "unset" if value is None else str(value)
