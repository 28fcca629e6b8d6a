"""Records of JSONL and Parquet as other programs write them: which have text, which have none, and what is
said of a file that is something else."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import WHOLE_RECORD, DataConfig, TokenizerConfig, prepare
from llm_jax.data.documents import read_documents, read_records
from llm_jax.data.sources import resolve
from llm_jax.data.tfds_datasets import quiet_tfds


def read(path, text_key="text", separator=""):
    return list(read_documents(path, text_key=text_key, document_bytes=4096, separator=separator))


def write_parquet(path, column, name="text"):
    pa.parquet.write_table(pa.table({name: column}), path)
    return path


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("nothing", [None, "", " \n\t"])
def test_a_record_without_text_is_left_out_of_every_format_and_counted(tmp_path, cache, nothing):
    texts = ["a", nothing, "b", nothing]
    paths = [write_lines(tmp_path / "x.jsonl", texts), write_parquet(tmp_path / "x.parquet", texts)]
    for path in paths:
        found = list(read_records(path, text_key="text", document_bytes=4096, separator=""))
        assert found == [b"a", None, b"b", None]
        assert read(path) == [b"a", b"b"]
        lines: list[str] = []
        for _ in range(2):  # the second time from the cache
            resolve(str(path), DataConfig(cache_dir=str(cache)), lines.append)
        said = "2 of 4 records have no text (null, empty or only white space) and are left out"
        assert lines.count(f"corpus {path}: {said}") == 2


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_a_file_of_nulls_has_no_documents(tmp_path, cache, name):
    """pandas writes a column of None as a column of nulls."""
    path = tmp_path / name
    write_lines(path, [None] * 3) if name.endswith("l") else write_parquet(path, pa.nulls(3))
    assert read(path) == []
    with pytest.raises(UserError, match=r"no documents: .* is empty or only white space or null"):
        resolve(str(path), DataConfig(cache_dir=str(cache)), print)


def test_documents_between_separators_may_be_empty(tmp_path):
    (tmp_path / "s.txt").write_text("a|\n|b|")
    assert read(tmp_path / "s.txt", separator="|") == [b"a", b"b"]


STRINGS = {
    "string": pa.string(),
    "large_string": pa.large_string(),  # Polars, pandas 3
    "string_view": pa.string_view(),  # Polars
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "categories": pa.dictionary(pa.int32(), pa.string()),
    "large categories": pa.dictionary(pa.uint16(), pa.large_string()),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_a_column_of_strings_is_read_in_each_of_arrows_layouts(tmp_path, kind):
    texts = ["naïve", "日本", None, "a" * 100, "naïve"]
    values = [text and text.encode() for text in texts] if "binary" in kind else texts
    path = write_parquet(tmp_path / "x.parquet", pa.array(values).cast(STRINGS[kind]))
    assert read(path) == [text.encode() for text in texts if text]
    struct = pa.StructArray.from_arrays([pa.array(values).cast(STRINGS[kind])], names=["text"])
    assert read(write_parquet(tmp_path / "y.parquet", struct, "doc"), "doc.text") == read(path)


def test_other_columns_of_bytes_are_text_or_refused(tmp_path):
    fixed = pa.array([b"abc", b"def"], pa.binary(3))
    assert read(write_parquet(tmp_path / "fixed.parquet", fixed)) == [b"abc", b"def"]
    assert read(write_parquet(tmp_path / "json.parquet", pa.array(['{"a": 1}'], pa.json_()))) == [b'{"a": 1}']
    for column in (pa.array([b"0" * 16], pa.uuid()), pa.array([["a"]]), pa.array([{"a": "b"}]), np.arange(3)):
        path = write_parquet(tmp_path / "no.parquet", column)
        with pytest.raises(
            UserError, match=r"data\.text_key=text: .*: the column must hold strings, but holds"
        ):
            read(path)


def test_bytes_of_a_string_column_that_are_no_utf8_are_kept(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    assert read(write_parquet(tmp_path / "x.parquet", broken)) == [b"a\xff"]


def test_a_field_of_a_field_is_named_with_a_dot_in_every_format(tmp_path):
    records = [{"meta": {"doc": {"text": "a"}}}, {"meta": None}, {"meta": {"doc": {"text": "b"}}}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pa.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet")
    for path in (tmp_path / "x.jsonl", tmp_path / "x.parquet"):
        found = list(read_records(path, text_key="meta.doc.text", document_bytes=4096, separator=""))
        assert found == [b"a", None, b"b"]
        for key, hint in (("doc.text", "valid: meta, meta.doc"), ("meta.docs", r"did you mean 'meta\.doc'")):
            with pytest.raises(UserError, match=rf"data\.text_key={key}: .*no such .*; {hint}"):
                read(path, key)


@pytest.mark.parametrize("beside", [{}, {"doc": {"text": "inner"}}])
def test_a_name_that_has_a_dot_itself_comes_first(tmp_path, beside):
    record = {**beside, "doc.text": "flat"}
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    pa.parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "x.parquet")
    for path in (tmp_path / "x.jsonl", tmp_path / "x.parquet"):
        assert read(path, "doc.text") == [b"flat"]


def test_two_fields_of_one_name_are_refused(tmp_path):
    two = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "n"]
    )
    pa.parquet.write_table(two, tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match=r"data\.text_key=text: .*: 2 columns have this name; rename all but one"
    ):
        read(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", "n") == [b"c"]
    (tmp_path / "x.jsonl").write_text('{"text": "a", "n": 1, "text": "b"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: .* several of its fields are named text; keep one"):
        read(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text('{"text": "a", "meta": {"text": "text"}, "n": 1, "n": 2}\n')
    assert read(tmp_path / "y.jsonl") == [b"a"]


OTHER_THINGS = {
    "array.jsonl": (b'[{"text": "a"},\n{"text": "b"}]\n', r"array.jsonl:1: is not a JSON object: it begins an array; jq -c '\.\[\]'"),
    "one.jsonl": (b'[{"text": "a"}]', r"one.jsonl:1: must be an object .* is a list; jq -c '\.\[\]' writes an object a line"),
    "pretty.jsonl": (b'{\n  "text": "a"\n}\n', r"pretty.jsonl:1: is not .*each line must hold one object: jq -c \. .*pretty.jsonl"),
    "joined.jsonl": (b'{"text": "a"}{"text": "b"}\n', r"joined.jsonl:1: is not .*each line must hold one object"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
    "pointer.txt.gz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
    "wide.txt": ("hi there".encode("utf-32"), r"is UTF-32; convert it to UTF-8 \(iconv -f UTF-32 -t UTF-8\)"),
    "unmarked.txt": ("hi there".encode("utf-32-be"), "is UTF-32BE; convert it to UTF-8 .iconv -f UTF-32BE"),
    "half.jsonl": ('{"text": "a"}'.encode("utf-16-le"), "is UTF-16LE; convert it to UTF-8 .iconv -f UTF-16LE"),
    "gzip.txt": (b"\x1f\x8b\x08\x00", "is compressed by gzip; unpack it, or name it .gz"),
    "zip.jsonl": (b"PK\x03\x04", "is a zip archive; unpack it"),
    "parquet.txt": (b"PAR1....", "is a Parquet file, not text; its name must end in .parquet"),
    "zeros.txt": (bytes(5000), "begins with zero bytes"),
    "spark.jsonl": (b'{"text": "a"}\n{"n": 1}\n', r"spark.jsonl:2: no such field, which records before it have; write null"),
    "pandas.jsonl": (b'{"text": "a"}\n{"text": NaN}\n', r"pandas.jsonl:2: the text must be a string, but is NaN; write null"),
    "html.jsonl": (b"<!DOCTYPE html>\n", r"html.jsonl:1: is not a JSON object: Expecting value \(column 1\)$"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_THINGS)
def test_a_file_that_is_something_else_is_named_with_the_way_on(tmp_path, cache, name):
    content, message = OTHER_THINGS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        resolve(str(tmp_path / name), DataConfig(cache_dir=str(cache)), print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blank", ["", "\r\n"])
def test_marks_of_files_that_were_joined_are_no_text(tmp_path, blank):
    part = '\ufeff{"text": "a"}\r\n'
    (tmp_path / "x.jsonl").write_bytes((part + blank + part).encode())
    assert read(tmp_path / "x.jsonl") == [b"a", b"a"]


@pytest.mark.parametrize("size", [1, 8])
def test_a_damaged_parquet_file_is_one_line(tmp_path, size):
    """Also a name of a column that is no UTF-8."""
    path = write_parquet(tmp_path / "x.parquet", ["a" * 1000, "b" * 1000])
    content = bytearray(path.read_bytes())
    names = [at for at in range(len(content)) if content[at : at + 4] == b"text"]
    assert names
    for at in [*range(8, len(content), 97), *names]:
        damaged = bytearray(content)
        damaged[at : at + size] = b"\xff" * size
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_that_were_joined_are_read_to_the_end(tmp_path, suffix):
    """As `cat a.gz b.gz` joins them; a part that is cut off is refused."""
    texts = [f"document {i}" for i in range(2000)]
    path, joined = tmp_path / f"part.jsonl.{suffix}", b""
    for part in (texts[:1500], texts[1500:]):
        with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[suffix]) as out:
            out.write("".join(json.dumps({"text": text}) + "\n" for text in part).encode())
        joined += path.read_bytes()
    path.write_bytes(joined)
    assert [text.decode() for text in read(path)] == texts
    path.write_bytes(joined[:-200])
    with pytest.raises(UserError, match=r"part\.jsonl\."):
        read(path)


@pytest.fixture
def prepared(tmp_path):
    """A TFDS dataset of records with a field in a field, of 10 records a shard; one text is empty."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"meta": {"text": tfds.features.Text(), "n": np.int32}})
    identity = tfds.core.dataset_info.DatasetIdentity("x", tfds.core.Version("1.0.0"), str(tmp_path), "here")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=10, file_format="array_record")
    writer.initialize_splits(["train"])
    texts = [f"document {i} has some text" if i != 7 else "" for i in range(25)]
    writer.add_examples({"train": [{"meta": {"text": text, "n": 1}} for text in texts]})
    writer.close_all()
    return tmp_path


def test_a_field_of_a_field_of_a_prepared_dataset_is_text(prepared, make):
    corpus = make(prepared, text_key="meta.text", vocab=290)
    assert corpus.train_documents + corpus.held_out_documents == 25
    for key, message in (
        ("meta.txt", r"no such field; did you mean 'meta\.text'"),
        ("text", r"no such field; did you mean 'meta\.text'"),
        ("meta", "has no text there"),
        ("meta.n", "has no text there"),
    ):
        with pytest.raises(UserError, match=rf"data\.text_key={key}: .*{message}"):
            make(prepared, text_key=key)


def test_empty_documents_of_a_prepared_dataset_are_counted(prepared, cache):
    lines: list[str] = []
    data = DataConfig(source=str(prepared), text_key="meta.text", cache_dir=str(cache), workers=1)
    prepare(
        data, TokenizerConfig(vocab=290), sequence_length=32, batch_size=2, seed=0, run_dir=None, log=lines.append
    )  # fmt: skip
    assert f"corpus {prepared}: 1 of 25 documents are empty, BOS and EOS alone" in lines


@pytest.mark.parametrize("damage", ["gone", "pointer", "cut"])
def test_a_shard_of_a_prepared_dataset_that_is_missing_or_damaged_is_one_line(
    prepared, make, damage, tmp_path_factory
):
    shard = sorted(path for path in prepared.iterdir() if "array_record" in path.name)[1]
    content = shard.read_bytes()
    shard.unlink()
    if damage != "gone":
        shard.write_bytes(
            OTHER_THINGS["pointer.txt"][0] if damage == "pointer" else content[: len(content) // 2]
        )
    message = {"gone": "No such file", "pointer": "is a pointer of Git LFS", "cut": "its files are damaged"}[
        damage
    ]
    with pytest.raises(UserError, match=rf"data\.source.*{message}") as error:
        make(prepared, text_key="meta.text", vocab=290, cache_dir=str(tmp_path_factory.mktemp("c")))
    assert "\n" not in str(error.value)


def test_records_of_a_tfds_dataset_are_read_whole(tmp_path):
    """A sequence of messages, as TFDS has it, is a list of messages."""
    turn = {"role": "user", "content": "é"}
    with quiet_tfds() as tfds:
        core, features = tfds.core, tfds.features
        identity = core.dataset_info.DatasetIdentity(
            name="chats", version=core.Version("1.0.0"), data_dir=str(tmp_path), module_name="tests"
        )
        messages = features.Sequence({"role": features.Text(), "content": features.Text()})
        info = core.DatasetInfo(
            builder=identity,
            features=features.FeaturesDict({"messages": messages, "id": np.int64, "label": np.bool_}),
        )
        writer = core.SequentialWriter(info, max_examples_per_shard=9, file_format="array_record")
        writer.initialize_splits(["train"])
        records = [{"messages": [turn] * (i + 1), "id": i, "label": i == 1} for i in range(3)]
        writer.add_examples({"train": records})
        writer.close_all()
    data = DataConfig(cache_dir=str(tmp_path / "cache"), text_key=WHOLE_RECORD)
    source = resolve(str(tmp_path), data, print)
    found = source.records()
    assert [json.loads(source.text(found, i)) for i in range(3)] == records
