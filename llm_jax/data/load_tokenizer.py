"""Reads a tokenizer from SentencePiece's or Hugging Face's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import BOM, lfs_problem, text_of
from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from llm_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.data.tokenizer import JSON_NAME, MODEL_NAME, Tokenizer


def load_tokenizer(path: Path | str, key: str = "tokenizer.file") -> Tokenizer:
    """The tokenizer of a folder (a run's `tokenizer/`, or a Hugging Face folder) or of a file.

    Of a folder tokenizer.json is read if there is one, else SentencePiece's tokenizer.model. Raises
    UserError, naming `key`, if there is neither.
    """
    path = Path(path).expanduser()
    origin = f"{key}={path}"
    if not path.exists():
        raise UserError(
            f"{origin}: no such file; give a {MODEL_NAME}, a {JSON_NAME}, or a folder with one of them"
        )
    names = (JSON_NAME, MODEL_NAME) if path.is_dir() else ("",)
    for file in (path / name for name in names if (path / name).is_file()):
        content = file.read_bytes()
        where = f"{origin}: {file.name}" if path.is_dir() else origin
        if problem := lfs_problem(content):
            raise UserError(f"{where}: {problem}")
        if file.suffix != ".json" and not content.removeprefix(BOM).lstrip().startswith(b"{"):
            return SentencePieceTokenizer(content, origin)
        if is_huggingface(text_of(content, where), where):
            return HuggingFaceTokenizer(file, origin)
    if path.is_file():
        raise UserError(f"{origin}: is JSON, but no {JSON_NAME}: it has no model; give a tokenizer's file")
    raise UserError(f"{origin}: has neither a Hugging Face {JSON_NAME} nor a {MODEL_NAME}")


def is_huggingface(text: str, where: str) -> bool:
    """True if a JSON file is a tokenizer, rather than a description of one (old run folders).

    Raises UserError, beginning with `where`, if it is not JSON.
    """
    try:
        tree: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not valid JSON ({error})") from error
    return isinstance(tree, dict) and isinstance(tree.get("model"), dict)
