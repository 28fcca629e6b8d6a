"""Opens a GGUF file as the parts of a Hugging Face folder.

The weights stay in the file and are dequantised as they are read: a copy of them would take eight times the
space of a 4-bit file. The tokenizer's files are made once and kept in the cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_jax.data import DataConfig, cache
from llm_jax.huggingface.gguf.architectures import read_tensors, read_tree
from llm_jax.huggingface.gguf.header import read_header
from llm_jax.huggingface.gguf.tensor import GgufTensor
from llm_jax.huggingface.gguf.tokenizer import tokenizer_files

VERSION = 1
"""Of the files that are made; another number makes them anew."""


def open_file(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """(the object of a config.json, the tensors by Hugging Face's names) of a GGUF file.

    Raises UserError, naming the key or the tensor, for anything that is damaged or not supported.
    """
    header = read_header(path)
    tree = read_tree(header)
    return tree, read_tensors(header, tree)


def tokenizer_folder_of(path: Path) -> Path:
    """The folder in the cache with the files of a GGUF file's tokenizer, which are made if they aren't there:
    tokenizer.json, tokenizer_config.json, chat templates, generation_config.json.

    It is named by the file's name and the sha256 of its header, which has all of the tokenizer. Raises
    UserError for a tokenizer that isn't supported, and for a cache that can't be written.
    """
    header = read_header(path)
    folder = DataConfig().cache_path()
    target = folder / "gguf" / f"{path.stem}-{cache.fingerprint(VERSION, header.sha256)[:16]}"

    def build(part: Path) -> None:
        for name, text in tokenizer_files(header).items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(text)

    with cache.writable(folder):
        cache.build_once(target, build)
    return target
