"""Documents from files and TFDS datasets, and what is said of those that are not right."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from llm_jax.data.documents import border, cut, read_documents, split
from llm_jax.errors import UserError

from .conftest import documents, write_jsonl


def read(path, *, document_bytes=4096, separator="", text_key="text"):
    return list(read_documents(path, text_key=text_key, document_bytes=document_bytes, separator=separator))


def test_text_is_cut_at_paragraphs_and_joins_to_the_same_bytes(tmp_path):
    text = "\n\n".join(documents(200)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    pieces = read(tmp_path / "a.txt", document_bytes=1000)
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= 1000
    assert sum(piece.endswith(b"\n\n") for piece in pieces) > len(pieces) * 0.6


@pytest.mark.parametrize("text", [b"x" * 10_000, "日本".encode() * 3000, b"\xff" * 5000, b"a b\n" * 3000])
def test_cuts_never_exceed_the_limit_or_break_a_character(text):
    blocks = [text[i : i + 777] for i in range(0, len(text), 777)]
    pieces = list(cut(blocks, 100))
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    if b"\xff" not in text:
        assert all(piece.decode() for piece in pieces)


def test_border_prefers_blank_lines_then_lines_then_spaces():
    assert border(b"aaaa bb\n\ncc\nd e" + b"z" * 10, 16) == 12  # the blank line is in the first half
    assert border(b"aaaa bbbbb\n\ncc\nd e" + b"z" * 10, 18) == 12
    assert border(b"aaaabbbbbb c dddddd", 16) == 13


def test_separator_tells_documents_apart(tmp_path):
    stories = documents(50)
    (tmp_path / "s.txt").write_text("<|endoftext|>".join(stories))
    assert [s.decode() for s in read(tmp_path / "s.txt", separator="<|endoftext|>")] == stories
    stream = "<|endoftext|>".join(stories).encode()
    blocks = [stream[i : i + 7] for i in range(0, len(stream), 7)]  # separators across the blocks
    assert [s.decode() for s in split(blocks, b"<|endoftext|>", 4096)] == stories


def test_a_gigantic_line_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    for separator in ("", "|"):
        tracemalloc.start()
        size = sum(len(d) for d in read_documents(path, text_key="", document_bytes=4096, separator=separator))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == 40 << 20
        assert peak < 8 << 20


def test_a_gigantic_document_is_tokenised_whole(make, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_jax.data.documents.RECORD_BYTES", 1 << 30)
    big = "word " * 200_000
    corpus = make(write_jsonl(tmp_path / "big.jsonl", [big, *documents(30)]), vocab=300)
    part = corpus._parts[0].train
    longest = int(part.lengths_N.argmax())
    start, length = int(part.starts_N[longest]), int(part.lengths_N[longest])
    assert corpus.tokenizer.decode(part.tokens[start : start + length]) == big


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz", "txt.zst", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path, suffix):
    import pandas
    import pyarrow

    expected = documents(40)
    path = tmp_path / f"docs.{suffix}"
    plain = "".join(json.dumps({"text": t, "n": 1}) + "\n" for t in expected) if "jsonl" in suffix else "<|d|>".join(expected)
    if suffix == "parquet":
        pandas.DataFrame({"text": expected, "n": 1}).to_parquet(path)
    elif suffix.endswith("gz"):
        path.write_bytes(gzip.compress(plain.encode()))
    elif suffix.endswith("zst"):
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(plain.encode())
    else:
        path.write_text(plain)
    assert [d.decode() for d in read(path, separator="<|d|>")] == expected


def test_folders_and_globs_are_read_in_path_order(make, tmp_path):
    records = documents(60)
    for i in range(3):
        write_jsonl(tmp_path / f"part{i}.jsonl", records[20 * i : 20 * i + 20])
    whole = make(write_jsonl(tmp_path / "all.jsonl", records), vocab=300)
    (tmp_path / "all.jsonl").unlink()
    (tmp_path / "README.md").write_text("not a document")
    folder, pattern = make(tmp_path, vocab=300), make(tmp_path / "part*.jsonl", vocab=300)
    assert folder.batch(0)["tokens"].tolist() == pattern.batch(0)["tokens"].tolist() == whole.batch(0)["tokens"].tolist()


def test_invalid_utf8_is_replaced_counted_and_reported(make, tmp_path, cache):
    from llm_jax.data import DataConfig, TokenizerConfig, prepare

    (tmp_path / "bad.txt").write_bytes(b"|".join([f"story {i} of some length".encode() for i in range(80)] + [b"bad \xff\xfe end"] * 2))
    lines: list[str] = []
    data = DataConfig(source=str(tmp_path / "bad.txt"), document_separator="|", cache_dir=str(cache))
    corpus = prepare(data, TokenizerConfig(vocab=290), sequence_length=16, batch_size=2, seed=0, run_dir=None, log=lines.append)
    assert any("2 documents are not valid UTF-8" in line for line in lines)
    everything = "".join(corpus.tokenizer.decode(row) for s in range(100) for row in corpus.batch(s)["tokens"])
    assert "bad \ufffd\ufffd end" in everything


def test_half_a_surrogate_in_json_does_not_stop_the_build(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"text": "half \\ud83d emoji"}\n')
    (raw,) = read(tmp_path / "s.jsonl")
    assert raw.decode("utf-8", "replace").startswith("half \ufffd")


def test_a_prepared_tfds_dataset_is_a_source(make, cache):
    make("stdlib", vocab=4096, sequence_length=128)  # prepared by our own builder
    (folder,) = cache.glob("datasets/stdlib-*/stdlib_text/1.0.0")
    corpus = make(folder, vocab=1000, split="train[:50]")
    assert corpus.train_documents + corpus.held_out_documents == 50
    with pytest.raises(UserError, match=r"data\.text_key=txt: .* did you mean 'text'"):
        make(folder, text_key="txt")
    with pytest.raises(UserError, match=r"data\.split=trian: .* did you mean 'train'"):
        make(folder, split="trian")


def test_a_tfds_name_is_a_source(make, tmp_path):
    corpus = make("tfds:stdlib_text:1.0.0", tfds_dir=str(tmp_path), vocab=1000, split="train[:40]")
    assert corpus.train_documents + corpus.held_out_documents == 40


BAD_FILES = {
    "empty.txt": (b"", "no documents: .*empty.txt is empty"),
    "blank.jsonl": (b"\n  \n", "no documents"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken.jsonl:2: not a JSON object"),
    "list.jsonl": (b'["a"]\n', r"list.jsonl:1: must be an object"),
    "key.jsonl": (b'{"txt": "a"}\n', r"key.jsonl:1: no such field; did you mean 'txt'\?"),
    "number.jsonl": (b'{"text": 3}\n', r"number.jsonl:1: the text must be a string, is int"),
    "fake.parquet": (b"PAR?", "not a Parquet file"),
    "fake.txt.gz": (b"not gzip", "cannot read .*fake.txt.gz"),
    "fake.txt.zst": (b"not zstd at all", "cannot read .*fake.txt.zst"),
    "wrong.csv": (b"a,b", "must end in one of"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_clear_line(make, tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        make(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("stdlb", r"data\.source=stdlb: no file, folder or TFDS dataset of that name; did you mean 'stdlib'"),
        ("tfds:tiny_shakespear", r"no TFDS dataset of that name; did you mean 'tiny_shakespeare'"),
        ("tfds:qqqqqq", r"no TFDS dataset of that name; give stdlib"),
        ("tfds:tiny_shakespeare:9.9.9", r"data\.source=tfds:tiny_shakespeare:9\.9\.9: "),
        ("./nowhere.txt", r"data\.source=\./nowhere\.txt: no such file or folder"),
        ("nothing/*.txt", r"data\.source=nothing/\*\.txt: no such file or folder"),
    ],
)
def test_unknown_sources_name_the_nearest(make, source, message):
    with pytest.raises(UserError, match=message) as error:
        make(source)
    assert "\n" not in str(error.value)


def test_values_out_of_range_are_refused(make, small):
    from llm_jax.data import TokenizerConfig

    with pytest.raises(UserError, match=r"data\.held_out_fraction=0: must be above 0"):
        make(small, held_out_fraction=0)
    with pytest.raises(UserError, match=r"data\.mixture: weight 0 of 'stdlib' must be above 0"):
        make(small, mixture={"stdlib": 0})
    with pytest.raises(UserError, match=r"tokenizer\.kind=bpee: did you mean 'bpe'"):
        make(small, tokenizer=TokenizerConfig(kind="bpee"))
    with pytest.raises(UserError, match=r"tokenizer\.vocab=100: must be at least 261"):
        make(small, vocab=100)
