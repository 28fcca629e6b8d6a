"""A command line as a frozen dataclass: its fields are the command's keys, and `read_command` reads a line of
arguments into one.

    @dataclass(frozen=True, kw_only=True)
    class Score:
        \"\"\"Held-out loss of a model: python -m llm_jax.score RUN ...\"\"\"

        run: Path = positional("RUN")
        \"\"\"A run folder.\"\"\"
        tokens: int | None = argument(None, least=1)
        \"\"\"At most so many tokens.\"\"\"

    command = read_command(["runs/a", "tokens=1e6"], Score)      # Score(run=Path("runs/a"), tokens=1000000)

Types, ranges, choices, keys that are missing, misspelled or given twice, and `--help` (core/help.py: the
docstrings of the class and below its fields) follow from the dataclass. A field that is a dataclass adds its
keys to the command's. A field of type dict[str, X] takes `field.NAME=X`. Where the class has a method
`check()`, it is called last, for what involves several keys. Every mistake is a UserError of one line.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from llm_jax.core.config_tree import WrongType, coerce, expected, union_members
from llm_jax.core.errors import UserError, check_choice, nearest, one_of, require
from llm_jax.core.files import user_path
from llm_jax.core.help import field_docs, print_help

Command = TypeVar("Command")
Pairs = tuple[tuple[str, str], ...]
"""Keys and values, as given and in order."""

Role = Literal["key", "positional", "flag", "passed_on", "in_order", "part"]


@dataclass(frozen=True)
class Argument:
    """How a field of a command is given. Made by `argument`, `positional`, `flag`, `passed_on`, `part` and
    `in_order`."""

    role: Role
    name: str = ""
    """As on the command line; the field's own name if empty."""
    shown: str = ""
    """What stands for its value in help: FILE in out=FILE. Empty: by its type."""
    repeated: bool = False
    """A key that may be given several times; its field is a tuple."""
    entry: str = "NAME"
    """What an entry of a table is called in help: AXIS in mesh.AXIS=N."""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: Callable[[], Iterable[str]] | None = None
    read: Callable[[str, str], Any] | None = None
    """Reads (key, text) in place of the type. Raises UserError."""
    takes: Callable[[str], bool] | None = None
    """Which keys are passed on."""
    without: tuple[str, ...] = ()
    """Keys of a part that this command has not."""


def argument(
    default: Any = MISSING, *, name: str = "", shown: str = "", repeated: bool = False, entry: str = "NAME",
    least: float | None = None, above: float | None = None, most: float | None = None,
    choices: Callable[[], Iterable[str]] | None = None, read: Callable[[str, str], Any] | None = None,
) -> Any:  # fmt: skip
    """A field given as name=VALUE. Without a default it must be given.

    least, above, most: the range of a number. choices: the valid texts, asked for when they are needed. read:
    (key, text) → value, in place of reading the text as the field's type.
    """
    if repeated and default is MISSING:
        default = ()
    made = Argument("key", name, shown, repeated, entry, least, above, most, choices, read)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={"argument": made})
    return dataclasses.field(default=default, metadata={"argument": made})


def positional(name: str, default: Any = MISSING, choices: Callable[[], Iterable[str]] | None = None) -> Any:
    """A field given as a word without "=": a path or, of type str, one of `choices`.

    Of type tuple[Path, ...] it takes all words that are left; () as default: there may be none.
    """
    return dataclasses.field(
        default=default, metadata={"argument": Argument("positional", name, choices=choices)}
    )


def flag(name: str) -> Any:
    """A field given as --name, and false otherwise."""
    return dataclasses.field(default=False, metadata={"argument": Argument("flag", f"--{name}")})


def passed_on(
    takes: Callable[[str], bool], shown: str, choices: Callable[[], Iterable[str]] | None = None
) -> Any:
    """A field of type Pairs: the keys that are somebody else's (an experiment's), passed on in order, unread.

    takes: whether a key is one of them; the first field that takes a key gets it. choices: the valid texts,
    which help lists.
    """
    return dataclasses.field(
        default=(), metadata={"argument": Argument("passed_on", shown=shown, takes=takes, choices=choices)}
    )


def in_order() -> Any:
    """A field of type Pairs: every key=value of the command line, in order, for what depends on the order of
    different keys."""
    return dataclasses.field(default=(), metadata={"argument": Argument("in_order")})


def part(kind: type, without: Sequence[str] = ()) -> Any:
    """A field that is a dataclass of further keys. without: fields of it that this command has not; they keep
    their defaults."""
    return dataclasses.field(
        default_factory=kind, metadata={"argument": Argument("part", without=tuple(without))}
    )


@dataclass(frozen=True, eq=False)
class Field:
    """A field of a command, with what is known of it."""

    owner: type
    at: str
    """Its name in the dataclass."""
    argument: Argument
    kind: Any
    """Its type."""
    default: Any
    """MISSING: it must be given."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.argument.name or self.at

    @property
    def is_table(self) -> bool:
        """Whether it takes name.ENTRY=VALUE."""
        return get_origin(self.kind) is dict

    @property
    def value_kind(self) -> Any:
        """The type of one value that is given; None is what a field is where its key is not given, and can't
        be written."""
        kind = (
            get_args(self.kind)[1]
            if self.is_table
            else get_args(self.kind)[0]
            if self.argument.repeated
            else self.kind
        )
        members = [member for member in union_members(kind) if member is not NoneType]
        return members[0] if len(members) == 1 else kind

    @property
    def shown(self) -> str:
        """What stands for its value in help."""
        first = union_members(self.value_kind)[0]
        if self.argument.shown:
            return self.argument.shown
        if get_origin(first) is tuple:
            return {int: "N,N,...", float: "X,X,..."}.get(get_args(first)[0], "A,B,...")
        return {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}.get(first, "NAME")

    @property
    def written(self) -> str:
        """How it is given: tokens=N, mesh.AXIS=N, --list, RUN."""
        if self.argument.role in ("positional", "flag"):
            return self.name
        if self.argument.role == "passed_on":
            return self.argument.shown
        return (
            f"{self.name}.{self.argument.entry}={self.shown}"
            if self.is_table
            else f"{self.name}={self.shown}"
        )

    @property
    def valid(self) -> list[str]:
        """Its choices, if it has any."""
        if self.argument.choices:
            return list(self.argument.choices())
        first = union_members(self.value_kind)[0]
        return [str(choice) for choice in get_args(first)] if get_origin(first) is Literal else []


def fields_of(kind: type, without: Sequence[str] = ()) -> Iterator[Field]:
    """The fields of a command; those of its parts in their places."""
    hints = get_type_hints(kind)
    for f in dataclasses.fields(kind):
        argument = f.metadata.get("argument", Argument("key"))
        if argument.role == "part":
            yield from fields_of(hints[f.name], argument.without)
        elif f.name not in without:
            default = f.default if f.default_factory is MISSING else f.default_factory()
            yield Field(kind, f.name, argument, hints[f.name], default)


def read_command(arguments: Sequence[str], kind: type[Command]) -> Command | None:
    """The arguments of a command, read and checked; None where help was asked for (by --help, -h, or nothing
    at all) and is printed.

    Raises UserError for keys that there are not (naming the nearest), are missing or given twice, and for
    values that can't be.
    """
    fields = list(fields_of(kind))
    if not arguments or {"--help", "-h"} & set(arguments):
        print_help(kind, fields)
        return None
    words, flags, pairs = split(arguments, fields)
    read: dict[Field, Any] = {field: pairs for field in fields if field.argument.role == "in_order"}
    read |= {field: True for field in fields if field.name in flags}
    read |= read_words(words, [field for field in fields if field.argument.role == "positional"])
    for name, text in pairs:
        field, entry = find(name, text, fields)
        if field.argument.role == "passed_on":
            read[field] = (*read.get(field, ()), (name, text))
        elif field.is_table:
            read[field] = read.get(field, {}) | {entry: read_value(field, name, text)}
        elif field.argument.repeated:
            read[field] = (*read.get(field, ()), read_value(field, name, text))
        elif field in read:
            raise UserError(f"{name}={text}: {name} is given twice")
        else:
            read[field] = read_value(field, name, text)
    for field in fields:
        if field not in read and field.default is MISSING:
            raise UserError(f"{field.written} is missing: {first_sentence(field)}")
    return build(kind, read)


def split(arguments: Sequence[str], fields: Sequence[Field]) -> tuple[list[str], list[str], Pairs]:
    """The words, flags and (key, value) pairs of a command line."""
    keys = [field.name for field in fields if field.argument.role == "key"]
    flags = [field.name for field in fields if field.argument.role == "flag"]
    folders = [field for field in fields if field.argument.role == "positional"]
    words, set_flags, pairs = [], [], []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if folders and is_path(argument, keys):
            words.append(argument)
        elif argument.startswith("-"):
            if argument not in flags:
                raise UserError(
                    f"{argument}: no such option; {nearest(argument, [*flags, '--help'])} (keys are "
                    "key=value, without dashes)"
                )
            set_flags.append(argument)
        elif not equals:
            example = next(
                (
                    field.written.partition("=")[0]
                    for field in fields
                    if field.argument.role in ("key", "passed_on")
                ),
                "key",
            )
            raise UserError(
                f"{argument}: is no key=value; write key=value, as in {example}={argument} (--help lists "
                "the keys)"
            )
        else:
            pairs.append((name, text))
    return words, set_flags, tuple(pairs)


def is_path(argument: str, keys: Sequence[str]) -> bool:
    """Whether an argument is a folder: a word without "=", or a folder that exists and is no key=value of the
    command.

    >>> is_path("runs/quickstart/default", ("step",)), is_path("step=3", ("step",)), is_path("--help", ())
    (True, False, False)
    """
    name, equals, _ = argument.partition("=")
    return not argument.startswith("-") and (not equals or (name not in keys and Path(argument).is_dir()))


def read_words(words: list[str], fields: list[Field]) -> dict[Field, Any]:
    """The words of a command, in order."""
    read: dict[Field, Any] = {}
    for field in fields:
        if get_origin(field.kind) is tuple:
            read |= {field: tuple(user_path(word) for word in words)} if words else {}
            words = []
        elif words:
            word = words.pop(0)
            if field.valid and word not in field.valid:
                raise UserError(f"{word}: {one_of(word, field.valid)}")
            read[field] = word if field.kind is str else user_path(word)
    if words:
        raise UserError(
            f"{words[0]}: unexpected extra word; this command takes "
            f"{', '.join(field.name for field in fields) or 'none'}"
        )
    return read


def find(name: str, text: str, fields: Sequence[Field]) -> tuple[Field, str]:
    """The field that a key is of, and the entry of a table. Raises UserError, naming the nearest key, if
    there is none."""
    for field in fields:
        if field.argument.role == "key" and not field.is_table and field.name == name:
            return field, ""
    for field in fields:
        if field.is_table and name.startswith(f"{field.name}."):
            return field, name.removeprefix(f"{field.name}.")
    for field in fields:
        if field.argument.takes and field.argument.takes(name):
            return field, ""
    keys = [
        field.written.partition("=")[0] for field in fields if field.argument.role in ("key", "passed_on")
    ]
    raise UserError(f"{name}={text}: there is no key {name!r}; {nearest(name, keys)}")


def read_value(field: Field, name: str, text: str) -> Any:
    """The value of a key, of its type and in its range. Raises UserError."""
    argument = field.argument
    if field.default is MISSING and not text:
        raise UserError(f"{name}={field.shown} is missing: {first_sentence(field)}")
    if argument.choices:
        check_choice(name, text, argument.choices())
    if argument.read:
        return argument.read(name, text)
    ranges: Any = (
        (argument.least, "at least", operator.ge),
        (argument.above, "above", operator.gt),
        (argument.most, "at most", operator.le),
    )
    ranges = [one for one in ranges if one[0] is not None]
    should_be = " and ".join(f"{word} {limit:g}" for limit, word, _ in ranges)
    try:
        value = coerce(text, field.value_kind)
    except WrongType as error:
        raise UserError(f"{name}={text}: {error}" + (f", {should_be}" if should_be else "")) from error
    items = value if isinstance(value, tuple) else (value,)
    right = not (ranges and math.inf in items) and all(
        within(item, limit) for item in items for limit, _, within in ranges
    )
    require(right, name, text, f"{expected(field.value_kind, text).removeprefix('must be ')}, {should_be}")
    return value


def first_sentence(field: Field) -> str:
    """The first sentence of a field's docstring, for an error line."""
    text = " ".join(field_docs(field.owner).get(field.at, "--help says what it is").split())
    return text.split(". ")[0].removesuffix(".")


def build(kind: type[Command], read: dict[Field, Any], without: Sequence[str] = ()) -> Command:
    """The dataclass of what was read, its parts first, each checked."""
    hints = get_type_hints(kind)
    values = {
        field.at: value for field, value in read.items() if field.owner is kind and field.at not in without
    }
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        argument = f.metadata.get("argument", Argument("key"))
        if argument.role == "part":
            values[f.name] = build(hints[f.name], read, argument.without)
    made = kind(**values)
    if callable(check := getattr(made, "check", None)):
        check()
    return made
