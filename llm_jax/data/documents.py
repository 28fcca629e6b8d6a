"""Reads documents, as bytes, from .txt, .jsonl and .parquet files of any size in bounded memory."""

from __future__ import annotations

import functools
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import BOM, json_line, lfs_problem, text_problem

SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst")
RECORD_BYTES = (
    16 << 20
)  # a longer JSONL or Parquet document is stored as several, so that a record fits in memory
WHOLE_RECORD = "*"
"""In place of a `text_key`: the document is the whole record, as an object in JSON."""
LINE_BYTES = 1 << 30  # parsing a JSONL line takes several times its size in memory
_BLOCK_BYTES = 1 << 20


def read_documents(path: Path, *, text_key: str, document_bytes: int, separator: str) -> Iterator[bytes]:
    """The documents of one file in order, those of `read_records` that have text."""
    records = read_records(path, text_key=text_key, document_bytes=document_bytes, separator=separator)
    return (text for text in records if text is not None)


def read_records(path: Path, *, text_key: str, document_bytes: int, separator: str) -> Iterator[bytes | None]:
    """The texts of `numbered_records`."""
    records = numbered_records(path, text_key=text_key, document_bytes=document_bytes, separator=separator)
    return (text for _, text in records)


def numbered_records(
    path: Path, *, text_key: str, document_bytes: int, separator: str
) -> Iterator[tuple[int, bytes | None]]:
    """The records of one file in order: (line, text).

    Of a JSONL file it is the line, of a Parquet file the row, from 1; 0 for other files. The text is None for
    a record without any: null, empty or only whitespace.

    A .txt file without a separator is one text, divided into documents, and has no records without text.
    Bytes that are not valid UTF-8 are kept; tokenising replaces them. Raises UserError, naming the file (and
    line), for a record that has no field `text_key` or no string in it, and for a file that is no text in
    UTF-8.
    """
    kind = "parquet" if path.suffix == ".parquet" else "jsonl" if ".jsonl" in path.suffixes[-2:] else "txt"
    if kind == "txt" and text_key == WHOLE_RECORD:
        raise UserError(
            f"data.source: {path} holds text; must be .jsonl or .parquet, with a record an example"
        )
    try:
        if kind == "txt":
            with _open(path) as file:
                blocks: Iterable[bytes] = iter(lambda: file.read(_BLOCK_BYTES), b"")
                if separator:
                    texts = split_documents(blocks, separator.encode(), document_bytes)
                    yield from ((0, text if text.strip() else None) for text in texts)
                else:
                    yield from ((0, text) for text in split_chunks(blocks, document_bytes) if text.strip())
            return
        for line, text in (
            enumerate(_parquet(path, text_key), 1) if kind == "parquet" else _jsonl(path, text_key)
        ):
            if text is None or not text.strip():
                yield line, None
            else:
                yield from ((line, chunk) for chunk in split_chunks([text], RECORD_BYTES) if chunk.strip())
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"data.source: {path} cannot be read: {error}") from error


def check_pointer(path: Path) -> None:
    """Raises UserError for a pointer of Git LFS, which stands in place of a file."""
    with path.open("rb") as file:
        if problem := lfs_problem(file.read(64)):
            raise UserError(f"data.source: {path} {problem}")


def split_chunks(blocks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Divides a stream into chunks of at most `limit` bytes, which together are all of its bytes."""
    buffer = b""
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start > limit:
            end = start + split_point(buffer[start : start + limit + 1], limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def split_point(text: bytes, limit: int) -> int:
    """The index, at most `limit`, where a chunk of `text` ends: after a blank line, else a line, else a
    space, else a character.

    Only the second half is searched, so that no chunk is shorter than half the limit.
    """
    for marks in ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",)):
        found = max(
            (at + len(mark) for mark in marks if (at := text.rfind(mark, limit // 2, limit)) >= 0), default=0
        )
        if found:
            return found
    for end in range(limit, max(limit - 4, 0), -1):
        if (text[end] & 0xC0) != 0x80:  # not inside a UTF-8 character
            return end
    return limit


def split_documents(blocks: Iterable[bytes], separator: bytes, limit: int) -> Iterator[bytes]:
    """The documents between the separators of a stream; one that is longer than `limit` bytes is divided."""
    buffer = b""
    for block in blocks:
        *complete, buffer = (buffer + block).split(separator)
        for document in complete:
            yield from split_chunks([document], limit)
        start = 0
        while len(buffer) - start > limit + len(
            separator
        ):  # a document of any length must not fill the memory
            end = start + split_point(buffer[start : start + limit + 1], limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield from split_chunks([buffer], limit)


def contains(path: Path, separator: bytes) -> bool:
    """True if the text of a .txt file contains `separator`."""
    with _open(path) as file:
        end = b""
        while block := file.read(_BLOCK_BYTES):
            if separator in end + block:
                return True
            end = (end + block)[-len(separator) :]
    return False


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """A file's text, decompressed, after its byte order mark.

    Raises UserError if it is a pointer of Git LFS, or no text in UTF-8 by its first bytes.
    """
    check_pointer(path)
    file: io.BufferedReader | gzip.GzipFile
    if path.suffix == ".gz":
        file = gzip.open(path)  # noqa: SIM115
    elif path.suffix == ".zst":
        import pyarrow

        file = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BLOCK_BYTES)
    else:
        file = path.open("rb")
    try:
        start = file.peek(64)[:64]
        if problem := text_problem(start):
            raise UserError(f"data.source: {path} {problem}")
        if start.startswith(BOM):
            file.read(len(BOM))
    except BaseException:
        file.close()
        raise
    return file


def _jsonl(path: Path, text_key: str) -> Iterator[tuple[int, bytes | None]]:
    """(line, text) of each record of a JSONL file."""
    first, found = text_key.partition(".")[0], False
    quoted = json.dumps(first).encode()
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            where = f"{path}:{number}"
            if len(line) >= LINE_BYTES:
                raise UserError(
                    f"data.source: {where}: a line of more than {LINE_BYTES:,} bytes; JSONL has one object "
                    "a line"
                )
            line = line.removeprefix(BOM)  # of a file that was joined to the one before
            if not line.strip():
                continue
            try:  # bytes that are not UTF-8 are kept, and counted when tokenising
                text = line.decode("utf-8", "surrogateescape")
                record = json_line(text, path)
                if line.count(quoted) > 1:
                    json.loads(text, object_pairs_hook=functools.partial(_once, first))
            except ValueError as error:
                raise UserError(f"data.source: {where}: is not a JSON object: {error}") from None
            if text_key == WHOLE_RECORD and isinstance(record, dict):
                yield number, line.strip()
                continue
            value = field_of(record, text_key)
            if value is not None and not isinstance(value, str):
                raise UserError(
                    f"data.text_key={text_key}: {where}: {_why_not(record, value, text_key, found)}"
                )
            found = True
            yield number, None if value is None else _bytes(value)


MISSING = object()
"""In place of the value of a field that a record hasn't."""


def field_of(record: Any, text_key: str) -> Any:
    """The value of a field by its name, or by a path of names with dots; `MISSING` if there is none, None in
    an object that is null."""
    if not isinstance(record, Mapping):
        return MISSING
    if text_key in record:
        return record[text_key]
    name, _, rest = text_key.partition(".")
    inner = record.get(name) if rest else MISSING
    return None if inner is None and name in record else field_of(inner, rest)


def _once(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError if several of its fields have this name."""
    if sum(key == name for key, _ in pairs) > 1:
        raise ValueError(f"several of its fields are named {name}; keep one of them")
    return dict(pairs)


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except (
        UnicodeEncodeError
    ):  # "\ud83d" alone in the JSON: half a surrogate pair, which UTF-8 has no bytes for
        return text.encode("utf-8", "surrogatepass")


def _why_not(record: Any, value: Any, text_key: str, found: bool) -> str:
    """Why the value of a record's field is no text. found: whether a record before it has the field."""
    if isinstance(record, list):
        return (
            f'must be an object like {{"{text_key}": "..."}}, but is a list; jq -c \'.[]\' writes an object '
            "a line"
        )
    if not isinstance(record, dict):
        return f'must be an object like {{"{text_key}": "..."}}, but is a {type(record).__name__}'
    if value is MISSING and found:  # not null: a misspelt name must not take a part of the data away
        return "no such field, which records before it have; write null for a text that is missing"
    if value is MISSING:
        return f"no such field; {nearest(text_key, field_names(record))}"
    if value != value:
        return "the text must be a string, but is NaN; write null for a text that is missing"
    return f"the text must be a string, but is {type(value).__name__}"


def field_names(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of a record's fields; those in objects as paths with dots."""
    for name, value in record.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in value)


def _parquet(path: Path, text_key: str) -> Iterator[bytes | None]:
    import pyarrow
    import pyarrow.parquet

    check_pointer(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_key == WHOLE_RECORD:
                for batch in file.iter_batches(batch_size=256):
                    yield from (json.dumps(row, ensure_ascii=False).encode() for row in batch.to_pylist())
                return
            names = _column_path(file.schema_arrow, text_key, path)
            for batch in file.iter_batches(batch_size=256, columns=[text_key]):
                column = batch.column(batch.schema.get_field_index(names[0]))
                yield from _as_bytes(column, names[1:]).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data.source: {path} is not a Parquet file: {error}") from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # of a damaged file, or another codec
        raise UserError(f"data.source: {path} cannot be read: {error}") from error


def _column_path(schema: Any, text_key: str, path: Path) -> list[str]:
    """The name of a column of text, or with those of structs' fields below it.

    Raises UserError if there is none or more than one of that name, or if it holds something else.
    """
    where = f"data.text_key={text_key}: {path}:"
    if schema.names.count(text_key) > 1:
        raise UserError(f"{where} {schema.names.count(text_key)} columns have this name; rename all but one")
    import pyarrow

    names = [text_key] if text_key in schema.names else text_key.split(".")
    field: Any = schema
    for name in names:
        fields = field.type if isinstance(field, pyarrow.Field) else field
        at = -1
        if isinstance(fields, pyarrow.Schema) or pyarrow.types.is_struct(fields):
            at = fields.get_field_index(name)
        if at < 0:
            known = _column_names(schema)
            raise UserError(f"{where} no such column; {nearest(text_key, known)}")
        field = fields.field(at)
    if not _holds_text(field.type):
        raise UserError(f"{where} the column must hold strings, but holds {field.type}")
    return names


def _column_names(fields: Iterable[Any]) -> Iterator[str]:
    """The names of columns; those of structs' fields as paths with dots."""
    import pyarrow

    for field in fields:
        yield field.name
        if pyarrow.types.is_struct(field.type):
            yield from (f"{field.name}.{inner.name}" for inner in field.type)


def _holds_text(kind: Any) -> bool:
    """True for a type whose values are strings or bytes, in any of Arrow's layouts, and for that of a column
    of nulls."""
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):  # such as arrow.json; a UUID's 16 bytes are no text
        return _holds_text(kind.storage_type) and not types.is_fixed_size_binary(kind.storage_type)
    if types.is_dictionary(kind):  # pandas writes a column of categories like this
        return _holds_text(kind.value_type)
    layouts = (
        types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary,
        types.is_null,
    )  # fmt: skip
    return any(is_layout(kind) for is_layout in layouts)


def _as_bytes(column: Any, names: list[str]) -> Any:
    """The text of a column, or of the field at a path in its structs, as an array of bytes."""
    import pyarrow
    import pyarrow.compute

    if names:
        column = pyarrow.compute.struct_field(column, names)
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary())
