"""Which files of a folder or a pattern are documents, and what is said of the others."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import DataConfig, Tokenizer, TokenizerConfig, prepare
from llm_jax.data.encoder import Encoded
from llm_jax.data.sources import resolve
from llm_jax.data.text_files import find_text_files

from .conftest import documents, write_jsonl


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"text": "document {name}"}}\n')


def names(folder: Path, source: str | None = None) -> list[str]:
    found = find_text_files(source or str(folder), Path(source or folder))
    return [str(path.relative_to(folder)) for path in found.read]


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/data-checkpoint.jsonl",
        "._data.jsonl",
        ".venv/lib/LICENSE.txt",
        ".Trash-1000/files/old.jsonl",
        ".git/description.txt",
        "inner/.cache/other.jsonl",
        "inner/.data.jsonl",
        "_temporary/0/part-0.parquet",
        "_delta_log/0.checkpoint.parquet",
        "__MACOSX/._data.jsonl",
    ],
)
def test_hidden_files_and_other_programs_folders_are_no_documents(tmp_path, hidden):
    write(tmp_path, "data.jsonl", hidden)
    assert names(tmp_path) == ["data.jsonl"]
    first = Path(hidden).parts[0]
    where = first if first.startswith((".", "_")) else str(Path(*Path(hidden).parts[:2]))
    assert find_text_files("x", tmp_path).left_out() == f"1 hidden ({where})"


def test_what_a_path_or_a_pattern_names_is_read_although_it_is_hidden(tmp_path):
    folder = tmp_path / ".mine"
    write(folder, "a.jsonl", ".b.jsonl", "_c.jsonl", "d/e.jsonl")
    assert names(folder) == ["_c.jsonl", "a.jsonl", "d/e.jsonl"]
    assert names(folder, str(folder / ".b.jsonl")) == [".b.jsonl"]
    assert names(folder, str(folder / ".*.jsonl")) == [".b.jsonl"]
    assert names(folder, str(folder / "**" / "*.jsonl")) == ["_c.jsonl", "a.jsonl", "d/e.jsonl"]


def test_what_is_not_read_is_counted_in_a_line(tmp_path, cache):
    write(tmp_path, "a.jsonl", "b.jsonl", ".c.jsonl", "README.md", "x.csv", "y.csv", "SHA256SUMS", "A.JSONL")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    lines: list[str] = []
    for _ in range(2):  # also when the documents are in the cache
        resolve(str(tmp_path), DataConfig(cache_dir=str(cache)), lines.append)
    left_out = (
        f"corpus {tmp_path}: 2 files read; not read: 1 hidden (.c.jsonl), 1 linked folder (elsewhere), "
        "5 other files (.csv 2, .JSONL 1, .md 1 and 1 more)"
    )
    assert [line.replace("without ending 1, ", "") for line in lines].count(left_out) == 2, lines


def test_a_folder_that_a_pattern_matches_is_counted(tmp_path):
    write(tmp_path, "a.jsonl", "shard/b.jsonl")
    found = find_text_files("x", tmp_path / "*")
    assert found.left_out() == f"1 folder ({tmp_path / 'shard'})"
    assert find_text_files("x", tmp_path / "*.jsonl").left_out() == ""


def test_a_folder_without_text_files_names_what_is_there(tmp_path):
    write(tmp_path, "a.json", ".b.jsonl")
    with pytest.raises(
        UserError, match=r"no files that end in .*; there are 1 hidden \(\.b\.jsonl\), 1 other"
    ):
        find_text_files("x", tmp_path)


@pytest.mark.parametrize("pattern", ["*", "**/*", "**/*.jsonl"])
def test_hidden_files_that_a_pattern_leaves_out_are_counted(tmp_path, pattern):
    write(tmp_path, "a.jsonl", ".b.jsonl", "c/.d/e.jsonl", "c/f.txt~")
    left_out = find_text_files("x", tmp_path / pattern).left_out()
    hidden = [tmp_path / ".b.jsonl"] + [tmp_path / "c/.d/e.jsonl"] * ("**" in pattern)
    assert left_out.startswith(f"{len(hidden)} hidden ({', '.join(map(str, hidden))})")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x.json", r"; jq -c '\.\[\]' .*x\.json > .*x\.jsonl makes JSONL of an array"),
        ("x.ndjson", "; it is JSONL under another name: rename it"),
        ("x.CSV", r"; pandas\.read_csv\('.*x\.CSV'\)\.to_parquet"),
        ("x.TXT", "; endings in lower case are read: rename it"),
        ("x.arrow", r"; datasets\.Dataset\.from_file\('.*x\.arrow'\)\.to_parquet"),
        ("x.docx", r"\.zst$"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_makes_text_of_it(tmp_path, name, hint):
    (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=rf"must end in one of \.txt, .*{hint}"):
        find_text_files("x", tmp_path / name)


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*"])
def test_a_link_to_a_file_that_is_not_there_is_refused(tmp_path, pattern):
    """As a copy of a cache of links has, or git-annex before `get`."""
    write(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / ".#a.jsonl").symlink_to("me@host.123")  # Emacs's lock
    with pytest.raises(UserError, match=r"b\.jsonl is no file, or a link to one that isn't there"):
        find_text_files("x", tmp_path / pattern)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch, cache):
    write(tmp_path, "a.jsonl", "private/b.jsonl")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied \(.*private\)"):
        resolve(str(tmp_path), DataConfig(cache_dir=str(cache)), print)


@pytest.mark.parametrize("twin", ["copy of data.jsonl", "data.jsonl.gz", "old/data.jsonl"])
def test_documents_that_come_twice_are_named(tmp_path, cache, twin):
    write_jsonl(tmp_path / "data.jsonl", documents(5))
    content = (tmp_path / "data.jsonl").read_bytes()
    (tmp_path / twin).parent.mkdir(exist_ok=True)
    (tmp_path / twin).write_bytes(gzip.compress(content) if twin.endswith(".gz") else content)
    lines: list[str] = []
    resolve(str(tmp_path), DataConfig(cache_dir=str(cache)), lines.append)
    assert any("documents come twice: " in line and line.endswith("again") for line in lines), lines


@pytest.mark.parametrize(("copies", "said"), [(0, False), (1, False), (3, True), (200, True)])
def test_documents_that_are_copies_are_counted_from_one_in_a_hundred(tmp_path, cache, copies, said):
    """As an older version of a file beside it gives: no two files have the same bytes."""
    write_jsonl(tmp_path / "a.jsonl", documents(200))
    write_jsonl(tmp_path / "b.jsonl", [*documents(200)[:copies], "another"])
    lines: list[str] = []
    data = DataConfig(source=str(tmp_path), cache_dir=str(cache), workers=1)
    for _ in range(2):
        prepare(
            data, TokenizerConfig(vocab=310), sequence_length=32, batch_size=2, seed=0, run_dir=None,
            log=lines.append,
        )  # fmt: skip
    line = f"corpus {tmp_path}: {copies} of {201 + copies} documents are copies of others"
    assert lines.count(line) == 2 * said


def test_a_file_without_documents_is_named(tmp_path, cache):
    write(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "b.jsonl").write_text("\n")
    (tmp_path / "c.txt").write_text("")
    lines: list[str] = []
    for _ in range(2):
        resolve(str(tmp_path), DataConfig(cache_dir=str(cache)), lines.append)
    assert sum(line.endswith("2 files without documents: b.jsonl, c.txt") for line in lines) == 2


class EvenOnly:
    """An encoder that skips every second document."""

    fingerprint = "even"

    def encode(self, text: str, tokenizer: Tokenizer) -> list[Encoded]:
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] if len(text) % 2 == 0 else []
        return [Encoded(np.array(ids, np.int64), np.ones(len(ids), np.uint8))]


def test_documents_that_an_encoder_skips_are_counted(small, cache):
    lines: list[str] = []
    prepare(
        DataConfig(source=str(small), cache_dir=str(cache), workers=1), TokenizerConfig(vocab=320),
        sequence_length=32, batch_size=2, seed=0, run_dir=None, log=lines.append, encoder=EvenOnly(),
    )  # fmt: skip
    odd = sum(len(text) % 2 for text in documents(400))
    assert 0 < odd < 400
    assert f"corpus {small}: {odd} of 400 documents were skipped by the objective's encoder" in lines
