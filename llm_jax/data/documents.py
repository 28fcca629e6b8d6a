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
RECORD_BYTES = (
    16 << 20
)  # a longer JSONL or Parquet document is stored as several, so that a record fits in memory
LINE_BYTES = 1 << 30  # parsing a JSONL line takes several times its size in memory
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"  # the byte order mark that Windows editors put before UTF-8


def read_documents(path: Path, *, text_key: str, document_bytes: int, separator: str) -> Iterator[bytes]:
    """The documents of one file in order, except those that are empty or only whitespace.

    Bytes that are not valid UTF-8 are kept; tokenising replaces them. Raises UserError, naming the file (and
    line), for a record without text under `text_key`, and for UTF-16.
    """
    try:
        if path.suffix == ".parquet":
            chunks = (
                chunk for text in _parquet(path, text_key) for chunk in split_chunks([text], RECORD_BYTES)
            )
        elif ".jsonl" in path.suffixes[-2:]:
            chunks = (
                chunk for text in _jsonl(path, text_key) for chunk in split_chunks([text], RECORD_BYTES)
            )
        else:
            with _open(path) as file:
                blocks: Iterable[bytes] = iter(lambda: file.read(_BLOCK_BYTES), b"")
                texts = (
                    split_documents(blocks, separator.encode(), document_bytes)
                    if separator
                    else split_chunks(blocks, document_bytes)
                )
                yield from (text for text in texts if text.strip())
            return
        yield from (chunk for chunk in chunks if chunk.strip())
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"data.source: {path} cannot be read: {error}") from error


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

    Raises UserError if the mark is that of UTF-16.
    """
    file: io.BufferedReader | gzip.GzipFile
    if path.suffix == ".gz":
        file = gzip.open(path)  # noqa: SIM115
    elif path.suffix == ".zst":
        import pyarrow

        file = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BLOCK_BYTES)
    else:
        file = path.open("rb")
    start = file.peek(len(_BOM))
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        file.close()
        raise UserError(f"data.source: {path} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if start.startswith(_BOM):
        file.read(len(_BOM))
    return file


def _jsonl(path: Path, text_key: str) -> Iterator[bytes]:
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            where = f"{path}:{number}"
            if len(line) >= LINE_BYTES:
                raise UserError(
                    f"data.source: {where}: a line of more than {LINE_BYTES:,} bytes; JSONL has one "
                    "object a line"
                )
            if not line.strip():
                continue
            try:  # bytes that are not UTF-8 are kept, and counted when tokenising
                record = json.loads(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"data.source: {where}: is not a JSON object: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
                raise UserError(f"data.text_key={text_key}: {where}: {_why_not(record, text_key)}")
            yield _bytes(record[text_key])


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except (
        UnicodeEncodeError
    ):  # "\ud83d" alone in the JSON: half a surrogate pair, which UTF-8 has no bytes for
        return text.encode("utf-8", "surrogatepass")


def _why_not(record: object, text_key: str) -> str:
    if not isinstance(record, dict):
        return f'must be an object like {{"{text_key}": "..."}}, but is a {type(record).__name__}'
    if text_key not in record:
        return f"no such field; {nearest(text_key, [str(key) for key in record])}"
    return f"the text must be a string, but is {type(record[text_key]).__name__}"


def _parquet(path: Path, text_key: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data.source: {path} is not a Parquet file: {error}") from error
    with file:
        if text_key not in file.schema_arrow.names:
            raise UserError(
                f"data.text_key={text_key}: {path}: no such column; "
                f"{nearest(text_key, file.schema_arrow.names)}"
            )
        kind = file.schema_arrow.field(text_key).type
        if pyarrow.types.is_dictionary(kind):  # pandas writes a column of categories like this
            kind = kind.value_type
        binary = (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
        )
        if not any(is_kind(kind) for is_kind in binary):
            raise UserError(
                f"data.text_key={text_key}: {path}: the column must hold strings, but holds {kind}"
            )
        for batch in file.iter_batches(batch_size=256, columns=[text_key]):
            for value in batch.column(0).cast(kind).cast(pyarrow.large_binary()):
                if value.is_valid:  # a null is a document without text
                    yield value.as_py()
