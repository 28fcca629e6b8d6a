"""Reads a tokenizer from SentencePiece's or Hugging Face's files."""

from __future__ import annotations

from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.core.files import BOM, inside, lfs_problem, parse_json, text_of, user_path
from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer, tree_of
from llm_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.data.tokenizer import ABOUT_NAME, JSON_NAME, MODEL_NAME, Tokenizer


def load_tokenizer(path: Path | str, key: str = "tokenizer.file") -> Tokenizer:
    """The tokenizer of a folder (a run's `tokenizer/`, or a Hugging Face folder) or of a file.

    Of a folder tokenizer.json is read if there is one, else SentencePiece's tokenizer.model. Raises
    UserError, naming `key`, if there is neither.
    """
    path = user_path(path)
    origin = f"{key}={path}"
    if not path.exists():
        raise UserError(
            f"{origin}: no such file; give a {MODEL_NAME}, a {JSON_NAME}, or a folder with one of them"
        )
    names = [name for name in (JSON_NAME, MODEL_NAME) if (path / name).is_file()]
    for file in [path] if path.is_file() else [inside(path, name, origin) for name in names]:
        content = file.read_bytes()
        where = f"{origin}: {file.name}" if path.is_dir() else origin
        if problem := lfs_problem(content) or "is empty; copy it again" * (not content):
            raise UserError(f"{where}: {problem}")
        if file.suffix != ".json" and not content.removeprefix(BOM).lstrip().startswith(b"{"):
            return SentencePieceTokenizer(content, origin, tree_of(file.parent / ABOUT_NAME, origin))
        if is_huggingface(text_of(content, where), where):
            return HuggingFaceTokenizer(file, origin)
    if path.is_file():
        raise UserError(f"{origin}: is JSON, but no {JSON_NAME}: it has no model; give a tokenizer's file")
    below = "; a run's is in tokenizer/ below it: give that" if (path / "tokenizer").is_dir() else ""
    raise UserError(f"{origin}: has neither a Hugging Face {JSON_NAME} nor a {MODEL_NAME}{below}")


def is_huggingface(text: str, where: str) -> bool:
    """True if a JSON file is a tokenizer, rather than a description of one (old run folders).

    Raises UserError, beginning with `where`, if it is not JSON.
    """
    tree = parse_json(text, where)
    return isinstance(tree, dict) and isinstance(tree.get("model"), dict)
