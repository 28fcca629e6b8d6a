"""What a file is by its bytes, wherever text or a model's file is expected."""

from __future__ import annotations

import pytest

from llm_jax.core.command import input_text
from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json, text_of
from llm_jax.data import load_tokenizer
from llm_jax.data.documents import read_documents
from llm_jax.experiment import read_yaml
from llm_jax.huggingface import safetensors
from llm_jax.huggingface.folder import open_folder
from llm_jax.scaling.fit import repeated
from llm_jax.scaling.fit.table import load_table
from llm_jax.scaling.recommend import read_fit
from llm_jax.slurm.config import read_site

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\nsize 12345\n"


def documents(path):
    return list(read_documents(path, text_key="text", document_bytes=4096, separator=""))


READERS = {
    "config.json": lambda path: open_folder(path.parent),
    "model.safetensors": safetensors.read_header,
    "model.safetensors.index.json": lambda path: safetensors.read_folder(path.parent),
    "tokenizer.json": load_tokenizer,
    "tokenizer.model": load_tokenizer,
    "folder/tokenizer.json": lambda path: load_tokenizer(path.parent),
    "folder/tokenizer.model": lambda path: load_tokenizer(path.parent),
    "config.yaml": read_yaml,
    "summary.json": read_json,
    "site.yaml": read_site,
    "runs.csv": load_table,
    "runs.csv.gz": load_table,
    "runs.parquet": load_table,
    "fit.json": read_fit,
    "law.json": lambda path: repeated.read_base(str(path)),
    "prompts.txt": lambda path: input_text("prompts", str(path)),
    "text.txt": documents,
    "text.jsonl.zst": documents,
    "text.parquet": documents,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_of_git_lfs_is_named_in_place_of_any_file(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(POINTER)
    with pytest.raises(
        UserError, match="is a pointer of Git LFS, not the file; fetch it with `git lfs pull`"
    ) as error:
        READERS[name](path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
)
def test_a_pointer_beside_a_tokenizer_is_named(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_in_another_coding_is_named_with_the_command_that_converts_it(coding):
    content = "ab: cd\n".encode(coding)
    if coding == "utf-8-sig":
        assert text_of(content, "x") == "ab: cd\n"
        return
    name = coding.upper().replace("6-", "6").replace("2-", "2")
    with pytest.raises(
        UserError, match=rf"^x=y: is {name}; convert it to UTF-8 \(iconv -f {name} -t UTF-8\)$"
    ):
        text_of(content, "x=y")


@pytest.mark.parametrize(
    "content", [b"", b"a", b"a\0b", "é".encode(), "\ufffe".encode(), b"ab\0\0", b"a\0bc", b"\0abc"]
)
def test_other_bytes_of_text_are_text(content):
    assert text_of(content, "x").encode() == content


@pytest.mark.parametrize("message", ["a\nb", "a\r\n\n  b\n", "a\u2028b"])
def test_an_error_of_the_user_is_one_line_whatever_a_library_wrote(message):
    assert str(UserError(f"key=value: {message}")) == "key=value: a b"
    assert str(UserError("two  spaces")) == "two  spaces"


def test_marks_and_titles_of_tables_are_read_or_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"loss": 1}\n{"loss": 2}\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfloss,n\n1,2\n2,3\n")
    for name in ("a.jsonl", "a.csv"):
        assert load_table(tmp_path / name)["loss"].tolist() == [1, 2]
    (tmp_path / "b.csv").write_text("loss,n,loss\n1,2,3\n")
    with pytest.raises(UserError, match=r"data=.*b\.csv: several columns are named loss; rename all but one"):
        load_table(tmp_path / "b.csv")
