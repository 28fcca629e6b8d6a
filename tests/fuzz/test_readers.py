"""Data files, whatever is in them: documents or one line; and texts come back as they went in."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_jax.core.errors import UserError
from llm_jax.core.files import text_problem
from llm_jax.data.documents import read_documents

SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst")
TEXTS = st.lists(st.text(max_size=40), max_size=8)
"""Without lone surrogates, which no UTF-8 file has."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(tempfile.mkdtemp())


def read(path: Path, **more) -> list[bytes]:
    settings = {"text_key": "text", "document_bytes": 256, "separator": "", **more}
    return list(read_documents(path, **settings))


def kept(texts: list[str]) -> list[bytes]:
    """Documents that are not blank (of bytes, as the reader counts them)."""
    return [raw for text in texts if (raw := text.encode()).strip()]


@given(st.sampled_from(SUFFIXES), st.binary(max_size=300))
@example(".jsonl", b"\xff\xfe\x00\x00h\x00\x00\x00")
@example(".jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
@example(".txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
def test_any_bytes_are_documents_or_one_line(folder, suffix, content):
    path = folder / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert all(isinstance(document, bytes) for document in read(path))
    except UserError as error:
        assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON | st.fixed_dictionaries({"text": JSON}), max_size=5))
def test_any_json_is_documents_or_one_line(folder, records):
    path = folder / "any.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(isinstance(r, dict) and isinstance(r["text"], str | None) for r in records)
    assert found == kept([r["text"] for r in records if r["text"] is not None])


@given(TEXTS, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_texts_of_jsonl_come_back(folder, texts, escaped, mark, packed, end):
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=escaped) for i, text in enumerate(texts)]
    content = b"\xef\xbb\xbf" * mark + "".join(line + end for line in lines).encode()
    path = folder / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == kept(texts)


@given(
    st.lists(st.none() | st.text(max_size=20), max_size=8),
    st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), "dictionary", "nested"]),
)
def test_texts_of_parquet_come_back(folder, texts, kind):
    path = folder / "a.parquet"
    if kind == "dictionary":
        column = pa.array(texts, pa.string()).dictionary_encode()
    elif kind == "nested":
        column = pa.array([{"text": text} for text in texts], pa.struct([("text", pa.string())]))
    else:
        column = pa.array(texts, kind)
    pq.write_table(pa.table({"meta" if kind == "nested" else "text": column}), path)
    found = read(path, text_key="meta.text" if kind == "nested" else "text")
    assert found == kept([text for text in texts if text is not None])


@given(st.text(max_size=2000), st.integers(64, 300))
def test_a_text_file_is_divided_and_nothing_is_lost(folder, text, document_bytes):
    path = folder / "a.txt"
    path.write_bytes(text.encode())
    if text_problem(text.encode()[:64]):  # as zeros, which are no text
        return
    documents = read(path, document_bytes=document_bytes)
    assert all(len(document) <= document_bytes for document in documents)
    squeezed = lambda raw: b"".join(raw.removeprefix(b"\xef\xbb\xbf").split())  # noqa: E731
    assert squeezed(b"".join(documents)) == squeezed(text.encode())


@given(
    st.lists(
        st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), max_size=30), max_size=8
    )
)
def test_documents_between_separators_come_back(folder, texts):
    path = folder / "a.txt"
    path.write_bytes("<|>".join(texts).encode())
    if text_problem(path.read_bytes()[:64]):
        return
    expected = kept([text.removeprefix("\ufeff") if i == 0 else text for i, text in enumerate(texts)])
    assert read(path, separator="<|>", document_bytes=4096) == expected
