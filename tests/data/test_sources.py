"""Documents from files and TFDS datasets, and the errors for those that can't be used."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc

import pandas
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import DataConfig
from llm_jax.data.documents import read_documents, split_chunks, split_documents, split_point
from llm_jax.data.sources import resolve

from .conftest import ROOT, documents, write_jsonl


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
    pieces = list(split_chunks(blocks, 100))
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    if b"\xff" not in text:
        assert all(piece.decode() for piece in pieces)


def test_border_prefers_blank_lines_then_lines_then_spaces():
    assert split_point(b"aaaa bb\n\ncc\nd e" + b"z" * 10, 16) == 12  # the blank line is in the first half
    assert split_point(b"aaaa bbbbb\n\ncc\nd e" + b"z" * 10, 18) == 12
    assert split_point(b"aaaabbbbbb c dddddd", 16) == 13


def test_separator_tells_documents_apart(tmp_path):
    stories = documents(50)
    (tmp_path / "s.txt").write_text("<|endoftext|>".join(stories))
    assert [s.decode() for s in read(tmp_path / "s.txt", separator="<|endoftext|>")] == stories
    stream = "<|endoftext|>".join(stories).encode()
    blocks = [stream[i : i + 7] for i in range(0, len(stream), 7)]  # separators across the blocks
    assert [s.decode() for s in split_documents(blocks, b"<|endoftext|>", 4096)] == stories


@pytest.mark.parametrize("separator", [b"\n\n", b"<|endoftext|>", b"|"])
def test_documents_do_not_depend_on_how_a_file_comes_in_blocks(separator):
    stream = separator.join(text.encode() for text in ["long " * 300, *documents(20), "x" * 700, ""])
    whole = list(split_documents([stream], separator, 100))
    for size in (1, 7, 99, 1000):
        assert (
            list(split_documents([stream[i : i + size] for i in range(0, len(stream), size)], separator, 100))
            == whole
        )
    assert max(map(len, whole)) <= 100


def test_separator_may_be_written_out_as_a_shell_gives_it(make, tmp_path):
    (tmp_path / "s.txt").write_text("\n\n".join(documents(40)))
    typed, real = (
        make(tmp_path / "s.txt", vocab=300, document_separator=separator) for separator in (r"\n\n", "\n\n")
    )
    assert typed.fingerprint == real.fingerprint
    assert typed.train_documents + typed.held_out_documents >= 40
    with pytest.raises(UserError, match=r"data\.document_separator=<\|end\|>: is nowhere in the \.txt files"):
        make(tmp_path / "s.txt", document_separator="<|end|>")


@pytest.mark.parametrize("name", ["bom.txt", "bom.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    text = "First.\n" if name.endswith("txt") else '{"text": "First.\\n"}\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / name) == [b"First.\n"]


def test_line_ends_of_windows_are_kept_and_their_blank_lines_are_borders(tmp_path):
    text = "\r\n\r\n".join(["two\r\nlines " * 4] * 100).encode()
    (tmp_path / "w.txt").write_bytes(text)
    pieces = read(tmp_path / "w.txt", document_bytes=300)
    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\r\n\r\n") for piece in pieces[:-1])


def test_a_text_without_a_line_end_at_its_end_is_whole(tmp_path):
    (tmp_path / "n.txt").write_bytes(b"one\ntwo")
    assert read(tmp_path / "n.txt") == [b"one\ntwo"]


def test_a_parquet_column_of_categories_is_text(tmp_path):
    import pandas

    texts = documents(5) * 2
    pandas.DataFrame({"text": pandas.Categorical(texts)}).to_parquet(tmp_path / "c.parquet")
    assert [d.decode() for d in read(tmp_path / "c.parquet")] == texts


def test_a_jsonl_line_longer_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_jax.data.documents.LINE_BYTES", 1000)
    path = write_jsonl(tmp_path / "l.jsonl", ["short", "long " * 1000])
    with pytest.raises(UserError, match=r"l\.jsonl:2: a line of more than 1,000 bytes"):
        read(path)


def test_a_gigantic_line_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    for separator in ("", "|"):
        tracemalloc.start()
        size = sum(
            len(d) for d in read_documents(path, text_key="", document_bytes=4096, separator=separator)
        )
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
    plain = (
        "".join(json.dumps({"text": t, "n": 1}) + "\n" for t in expected)
        if "jsonl" in suffix
        else "<|d|>".join(expected)
    )
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
    assert (
        folder.batch(0)["tokens"].tolist()
        == pattern.batch(0)["tokens"].tolist()
        == whole.batch(0)["tokens"].tolist()
    )


def test_invalid_utf8_is_replaced_counted_and_reported(make, tmp_path, cache):
    from llm_jax.data import DataConfig, TokenizerConfig, prepare

    (tmp_path / "bad.txt").write_bytes(
        b"|".join([f"story {i} of some length".encode() for i in range(80)] + [b"bad \xff\xfe end"] * 2)
    )
    lines: list[str] = []
    data = DataConfig(source=str(tmp_path / "bad.txt"), document_separator="|", cache_dir=str(cache))
    corpus = prepare(
        data,
        TokenizerConfig(vocab=290),
        sequence_length=16,
        batch_size=2,
        seed=0,
        run_dir=None,
        log=lines.append,
    )
    assert any("2 documents are not valid UTF-8" in line for line in lines)
    everything = "".join(
        corpus.tokenizer.decode(row) for s in range(100) for row in corpus.batch(s)["tokens"]
    )
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


@pytest.mark.parametrize(
    "info", [{"features": {"text": {"dtype": "string", "_type": "Value"}}}, {"homepage": ""}]
)
def test_a_folder_that_hugging_face_datasets_wrote_is_one_of_files(make, tmp_path, info):
    """It has a dataset_info.json too, in another format than TFDS's."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "state.json").write_text("{}")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=r"no files that end .*\.arrow 1.*Dataset\.from_file.*\.to_parquet"):
        make(folder)
    pyarrow.parquet.write_table(pyarrow.table({"text": documents(60)}), folder / "train.parquet")
    corpus = make(folder)
    assert corpus.train_documents + corpus.held_out_documents == 60


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("dataset_info.json", {"new": 1}),
        ("dataset_info.json", {"version": "latest"}),
        (
            "dataset_info.json",
            {"splits": [{"name": "train", "filepathTemplate": "{X}", "shardLengths": ["9"]}]},
        ),
        ("features.json", None),
    ],
)
def test_a_prepared_dataset_that_tfds_cannot_read_is_one_line(make, tmp_path, cache, file, change):
    make(write_jsonl(tmp_path / "a.jsonl", documents(60)))
    folder = shutil.copytree(max(cache.glob("datasets/local-*"), key=os.path.getmtime), tmp_path / "tfds")
    path = folder / file
    path.unlink() if change is None else path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"^data\.source=.*: TFDS can't read it: [^\n]*$"):
        make(folder)


def test_a_tfds_name_without_a_network_is_one_line_and_leaves_nothing(make, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_jax.data.sources._DOWNLOAD_RETRIES", 0)
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nothing listens there
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "mine").write_text("of an earlier download")
    before = sorted(tmp_path.rglob("*"))
    for name in ("tiny_shakespeare", "tfds:lm1b", "wikipedia"):  # new and old style of TFDS's own code
        with pytest.raises(
            UserError, match=rf"data\.source={name}: TFDS could not prepare it: \w+Error"
        ) as error:
            make(name, tfds_dir=str(tmp_path))
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_the_text_of_a_tfds_dataset_is_looked_for_before_it_is_downloaded(make, tmp_path):
    with pytest.raises(
        UserError, match=r"data\.text_key=text: tfds:mnist has no such field; valid: image, label"
    ):
        make("tfds:mnist", tfds_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.text_key=label: tfds:mnist has no text there"):
        make("tfds:mnist", text_key="label", tfds_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_tfds_name_is_a_source(make, tmp_path):
    corpus = make("tfds:stdlib_text:1.0.0", tfds_dir=str(tmp_path), vocab=1000, split="train[:40]")
    assert corpus.train_documents + corpus.held_out_documents == 40


BAD_FILES = {
    "empty.txt": (b"", "no documents: .*empty.txt is empty"),
    "space.txt": (b" \n\t\r\n" * 50, "no documents: .*space.txt is empty or only white space"),
    "wide.txt": ("UTF-16".encode("utf-16"), "wide.txt is UTF-16; convert it to UTF-8"),
    "deep.jsonl": (b"[" * 100_000, r"deep.jsonl:1: is not a JSON object"),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", r"digits.jsonl:1: is not a JSON object"),
    "nested.jsonl": (b'{"doc": {"text": "a"}}', r"nested.jsonl:1: no such field; did you mean 'doc\.text'\?"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}' * 999)[:-20], "cut.jsonl.gz cannot be read"),
    "blank.jsonl": (b"\n  \n", "no documents"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken.jsonl:2: is not a JSON object"),
    "list.jsonl": (b'["a"]\n', r"list.jsonl:1: must be an object"),
    "key.jsonl": (b'{"txt": "a"}\n', r"key.jsonl:1: no such field; did you mean 'txt'\?"),
    "number.jsonl": (b'{"text": 3}\n', r"number.jsonl:1: the text must be a string, but is int"),
    "fake.parquet": (b"PAR?", "not a Parquet file"),
    "fake.txt.gz": (b"not gzip", "fake.txt.gz cannot be read"),
    "fake.txt.zst": (b"not zstd at all", "fake.txt.zst cannot be read"),
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
        ("nothing/*.txt", r"data\.source=nothing/\*\.txt: no such file or folder; nothing matches"),
        ("no[1]/*.txt", r"nothing matches the pattern; write \[\[\] for a \["),
        ("s3://b/*.parquet", r"data\.source=s3://b/\*\.parquet: no address is read; download the data"),
        ("hf://datasets/a/b", "no address is read"),
        (str(ROOT / "test" / "data" / "x.txt"), r"no such file or folder; did you mean '.*/tests'\?"),
        ("", r"data\.source: the name of a source is empty"),
        ("a" * 300 + ".txt", r"data\.source=a+\.txt: cannot be read: File name too long"),
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
    with pytest.raises(UserError, match=r"data\.mixture: weight inf of 'stdlib' must be above 0 and finite"):
        make(small, mixture={"stdlib": float("inf")})
    with pytest.raises(
        UserError, match=r"tokenizer\.kind=bpee: must be one of bpe, unigram; did you mean 'bpe'"
    ):
        make(small, tokenizer=TokenizerConfig(kind="bpee"))
    with pytest.raises(UserError, match=r"tokenizer\.vocab=100: must be at least 261"):
        make(small, vocab=100)


def test_a_document_of_files_is_named_by_its_file_and_line(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('\n{"text": "one"}\n\n{"text": null}\n{"text": "two"}\n')
    pandas.DataFrame({"text": ["three", "four"]}).to_parquet(tmp_path / "texts" / "b.parquet")
    (tmp_path / "texts" / "c.txt").write_text("five")
    source = resolve(str(tmp_path / "texts"), DataConfig(cache_dir=str(tmp_path / "cache")), print)
    where = [source.where(i) for i in range(5)]
    assert where[:4] == ["a.jsonl:2", "a.jsonl:5", "b.parquet:1", "b.parquet:2"]
    assert where[4] == f"{tmp_path / 'texts'}, document 5"
