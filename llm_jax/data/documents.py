"""Reads documents, as bytes, from .txt, .jsonl and .parquet files of any size in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from llm_jax.core.errors import UserError, nearest

SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst")
RECORD_BYTES = 16 << 20  # a longer JSONL or Parquet document is stored as several: a record has to fit in memory
LINE_BYTES = 1 << 30  # a JSONL line is parsed as a whole, in several times its size of memory
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"  # Windows editors write it before UTF-8; it is no text


def read_documents(path: Path, *, text_key: str, document_bytes: int, separator: str) -> Iterator[bytes]:
    """The documents of one file in order, without those that are empty or only whitespace.

    The bytes are the file's own: what is not valid UTF-8 is passed on and dealt with when tokenising.
    Raises UserError naming the file (and line) for a record that has no text under `text_key`, and for UTF-16.
    """
    try:
        if path.suffix == ".parquet":
            pieces = (piece for text in _parquet(path, text_key) for piece in cut([text], RECORD_BYTES))
        elif ".jsonl" in path.suffixes[-2:]:
            pieces = (piece for text in _jsonl(path, text_key) for piece in cut([text], RECORD_BYTES))
        else:
            with _open(path) as file:
                blocks: Iterable[bytes] = iter(lambda: file.read(_BLOCK_BYTES), b"")
                stories = split(blocks, separator.encode(), document_bytes) if separator else cut(blocks, document_bytes)
                yield from (story for story in stories if story.strip())
            return
        yield from (piece for piece in pieces if piece.strip())
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"data.source: cannot read {path}: {error}") from error


def cut(blocks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Cuts a stream into pieces of at most `limit` bytes that join to the same bytes again."""
    buffer = b""
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start > limit:
            end = start + border(buffer[start : start + limit + 1], limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def border(text: bytes, limit: int) -> int:
    """Where to cut `text` at or before `limit`: after a blank line, else a line, else a space, else a character.

    Only the second half is searched, so that no piece is shorter than half the limit.
    """
    for marks in ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",)):
        found = max((at + len(mark) for mark in marks if (at := text.rfind(mark, limit // 2, limit)) >= 0), default=0)
        if found:
            return found
    for end in range(limit, max(limit - 4, 0), -1):
        if (text[end] & 0xC0) != 0x80:  # not inside a UTF-8 character
            return end
    return limit


def split(blocks: Iterable[bytes], separator: bytes, limit: int) -> Iterator[bytes]:
    """The pieces of a stream between separators, each cut where it is longer than `limit` bytes."""
    buffer = b""
    for block in blocks:
        *whole, buffer = (buffer + block).split(separator)
        for story in whole:
            yield from cut([story], limit)
        start = 0
        while len(buffer) - start > limit + len(separator):  # a story without end must not fill the memory
            end = start + border(buffer[start : start + limit + 1], limit)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield from cut([buffer], limit)


def holds(path: Path, mark: bytes) -> bool:
    """Whether the text of a .txt file has `mark` in it somewhere."""
    with _open(path) as file:
        end = b""
        while block := file.read(_BLOCK_BYTES):
            if mark in end + block:
                return True
            end = (end + block)[-len(mark) :]
    return False


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """A file's text, unpacked, from behind a byte order mark on. Raises UserError where that mark says UTF-16."""
    file: io.BufferedReader | gzip.GzipFile
    if path.suffix == ".gz":
        file = gzip.open(path)  # noqa: SIM115 (the caller closes it)
    elif path.suffix == ".zst":
        import pyarrow

        file = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BLOCK_BYTES)
    else:
        file = path.open("rb")
    begin = file.peek(len(_BOM))
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        file.close()
        raise UserError(f"data.source: {path} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if begin.startswith(_BOM):
        file.read(len(_BOM))
    return file


def _jsonl(path: Path, text_key: str) -> Iterator[bytes]:
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            where = f"{path}:{number}"
            if len(line) >= LINE_BYTES:
                raise UserError(f"data.source: {where}: a line of more than {LINE_BYTES:,} bytes; JSONL has one object a line")
            if not line.strip():
                continue
            try:  # bytes that are not UTF-8 come through as they are, to be counted when tokenising
                record = json.loads(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"data.source: {where}: not a JSON object: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
                raise UserError(f"data.text_key={text_key}: {where}: {_why_not(record, text_key)}")
            yield _bytes(record[text_key])


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # "\ud83d" alone in the JSON: half a character, which UTF-8 cannot say
        return text.encode("utf-8", "surrogatepass")


def _why_not(record: object, text_key: str) -> str:
    if not isinstance(record, dict):
        return f'must be an object like {{"{text_key}": "..."}}, is a {type(record).__name__}'
    if text_key not in record:
        return f"no such field; {nearest(text_key, [str(key) for key in record])}"
    return f"the text must be a string, is {type(record[text_key]).__name__}"


def _parquet(path: Path, text_key: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data.source: {path} is not a Parquet file: {error}") from error
    with file:
        if text_key not in file.schema_arrow.names:
            raise UserError(f"data.text_key={text_key}: {path}: no such column; {nearest(text_key, file.schema_arrow.names)}")
        kind = file.schema_arrow.field(text_key).type
        if pyarrow.types.is_dictionary(kind):  # how pandas writes a column of categories
            kind = kind.value_type
        binary = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_binary, pyarrow.types.is_large_binary)
        if not any(is_kind(kind) for is_kind in binary):
            raise UserError(f"data.text_key={text_key}: {path}: the column must hold strings, holds {kind}")
        for batch in file.iter_batches(batch_size=256, columns=[text_key]):
            for value in batch.column(0).cast(kind).cast(pyarrow.large_binary()):
                if value.is_valid:  # a null is a document without text
                    yield value.as_py()
