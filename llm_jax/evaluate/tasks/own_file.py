"""Tasks of the user's files: .jsonl, .parquet, .tsv (also .jsonl.gz), whose records `records.py` reads, and
.py files (`python_file.py`)."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from llm_jax.core.errors import UserError, one_of
from llm_jax.core.files import json_line, text_of, user_path
from llm_jax.evaluate.tasks.python_file import tasks_of_module
from llm_jax.evaluate.tasks.records import Record, item_of, kind_of, metric_of
from llm_jax.evaluate.tasks.references import last_number, same_number, same_text
from llm_jax.evaluate.tasks.task import Item, Kind, Task

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".tsv", ".py")


def is_file_name(name: str) -> bool:
    """Whether a name of `tasks=` is a file, with a kind after a colon or without.

    >>> is_file_name("mine/qa.jsonl:cloze"), is_file_name("arc_easy:mcf")
    (True, False)
    """
    return name.endswith(ENDINGS) or name.rpartition(":")[0].endswith(ENDINGS)


def split_kind(name: str) -> tuple[str, Kind | None]:
    """(the file, the kind that is asked for) of FILE or FILE:KIND. Raises UserError for another kind."""
    file, _, kind = name.rpartition(":")
    if name.endswith(ENDINGS) or not file:
        return name, None
    if kind not in get_args(Kind):
        raise UserError(f"tasks={name}: {kind or 'nothing'} is no kind; {one_of(kind, get_args(Kind))}")
    return file, kind  # type: ignore[return-value]


def tasks_of_file(name: str) -> list[Task]:
    """The tasks of a file: one of a file of records, which is named as the file is; of a .py file all that it
    defines. Raises UserError, with file and line, for what can't be read."""
    file, kind = split_kind(name)
    path = user_path(file)
    if not path.is_file():
        raise UserError(f"tasks={name}: {'is a folder; must be a file' if path.is_dir() else 'no such file'}")
    if path.suffix == ".py":
        return tasks_of_module(path)
    records = functools.cache(lambda: list(read_records(path)))
    asked = kind or kind_at_line(path, records())
    name = path.name.removesuffix(".gz").removesuffix(path.suffixes[-1] if path.suffix != ".gz" else ".jsonl")

    def items() -> Iterator[Item]:
        for number, (line, record) in enumerate(records()):
            try:
                yield item_of(record, asked, number)
            except UserError as error:
                raise UserError(f"tasks={path}: line {line}: {error}") from error

    numeric = asked == "generate" and all(
        last_number(item.text) is not None and not item.text.strip("-$,. 0123456789") for item in items()
    )
    return [
        Task(
            name=name,
            language="",
            kind=asked,
            items=items,
            metric=same_metric(path, records()) if asked == "choice" else "",
            formulation="cf" if asked == "choice" else "",
            about=str(path),
            stop=("\n\n", "\nQuestion:") if asked == "generate" else CODE_STOPS if asked == "code" else (),
            max_tokens=512,
            right=same_number if numeric else same_text,
        )
    ]


CODE_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\n@", "\n```")
"""Where a function that a model completes ends (Chen et al. 2021, appendix)."""


def kind_at_line(path: Path, records: list[tuple[int, Record]]) -> Kind:
    """The kind of a file's records, by the fields of the first. Raises UserError."""
    if not records:
        raise UserError(f"tasks={path}: is empty; must have an object a line")
    try:
        return kind_of(records[0][1])
    except UserError as error:
        raise UserError(f"tasks={path}: line {records[0][0]}: {error}") from error


def same_metric(path: Path, records: list[tuple[int, Record]]) -> str:
    """The metric that all records of choice ask for; empty for the kind's. Raises UserError."""
    wanted = ""
    for number, (line, record) in enumerate(records):
        try:
            found = metric_of(record)
        except UserError as error:
            raise UserError(f"tasks={path}: line {line}: {error}") from error
        if number and found != wanted:
            raise UserError(
                f"tasks={path}: line {line}: normalization: is {found or 'missing'}, and "
                f"{wanted or 'missing'} before; must be the same in all"
            )
        wanted = found
    return wanted


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(line, record) of each record of a file. Raises UserError for a file that can't be read."""
    try:
        if path.suffix == ".parquet":
            yield from parquet_records(path)
            return
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # damage is any of these
        raise UserError(f"tasks={path}: can't be read ({getattr(error, 'strerror', '') or error})") from error
    lines = text_of(content, f"tasks={path}").split("\n")
    yield from table_records(lines, path) if path.suffix == ".tsv" else json_records(lines, path)


def json_records(lines: list[str], path: Path) -> Iterator[tuple[int, Record]]:
    """The objects of JSONL."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json_line(line, path)
        except ValueError as error:
            raise UserError(f"tasks={path}: line {number} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f'tasks={path}: line {number} is no object; must be like {{"question": "..."}}')
        yield number, record


def table_records(lines: list[str], path: Path) -> Iterator[tuple[int, Record]]:
    """The rows of a table with tabs. Its first row names the fields, but for two kinds of tables without: of
    question and answer (MGSM), and of True or False and a sentence, two lines a pair (CLAMS)."""
    rows = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        return
    names = rows[0][1]
    if len(names) == 2 and names[0] in ("True", "False"):
        if len(rows) % 2:
            raise UserError(f"tasks={path}: line {rows[-1][0]}: is alone; must be a True and a False")
        for (number, a), (_, b) in zip(rows[::2], rows[1::2], strict=True):
            if {a[0], b[0]} != {"True", "False"} or not len(a) == len(b) == 2:
                raise UserError(
                    f"tasks={path}: line {number}: must be a True and a False, a pair after another"
                )
            good, bad = (a, b) if a[0] == "True" else (b, a)
            yield number, {"sentence_good": good[1], "sentence_bad": bad[1]}
        return
    if len(names) == 2 and not all(name.isidentifier() for name in names):
        names = ["question", "answer"]
        rows = [(0, []), *rows]
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            raise UserError(
                f"tasks={path}: line {number}: has {len(cells)} cells, and there are {len(names)} columns"
            )
        yield number, dict(zip(names, cells, strict=True))


def parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"tasks={path}: is no Parquet file ({error})") from error
    yield from enumerate(rows, 1)
