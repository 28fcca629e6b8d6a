"""What a tokenizer is, whatever it was made by, and the one function that reads one from its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm_jax.errors import UserError

MODEL_NAME = "tokenizer.model"
"""SentencePiece's model."""
JSON_NAME = "tokenizer.json"
"""Hugging Face's. Run folders made before there was one have a few words about their SentencePiece model under this name."""
ABOUT_NAME = "about.json"
"""What `save` says of a tokenizer beside its files."""
_PROBE = " a  b\t\n\n    if x_1:\r\n é e\u0301 日本 😀 \u00a0\ufb01 \u2581 <s>  "


class Tokenizer(Protocol):
    """Text to token ids and back. Documents are stored as BOS, text, EOS."""

    fingerprint: str
    """sha256 hex of all that ids depend on."""
    vocab_size: int
    """Rows that an embedding needs; a model may have more."""
    bos_id: int
    """What a document begins with. Where a tokenizer has no BOS (Qwen), its EOS, as between the documents that such models learned from."""
    eos_id: int
    """What a document ends with."""
    eos_ids: tuple[int, ...]
    """All that may end a text; `eos_id` is one of them."""
    pad_id: int
    """Stands where segments are 0."""
    lossless: bool
    """Whether any text comes back whole, and the bytes of its pieces sum to the bytes of the text (looked at with a probe)."""

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes that each piece stands for; 0 for control and unknown pieces."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. Text that looks like a control piece is text. Raises UserError for half a surrogate pair."""

    def encode_pieces(self, text: str) -> Iterator[list[int]]:
        """What `encode` gives, a bounded stretch of text at a time where the tokenizer allows that."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control pieces are silent, bytes that are not UTF-8 become U+FFFD."""

    def pieces(self) -> list[str]:
        """Every piece as the tokenizer's own file writes it, for looking at."""

    def save(self, folder: Path | str) -> None:
        """Writes the files that `load_tokenizer` reads, as they were, and a few words about them."""


def load_tokenizer(path: Path | str, key: str = "tokenizer.file") -> Tokenizer:
    """The tokenizer of a folder (a run's `tokenizer/`, or one of Hugging Face's) or of a file.

    Hugging Face's tokenizer.json where there is one, else SentencePiece's tokenizer.model. Raises UserError, with `key`, if there is neither.
    """
    from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
    from llm_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

    path = Path(path).expanduser()
    origin = f"{key}={path}"
    if not path.exists():
        raise UserError(f"{origin}: no such file; give a {MODEL_NAME}, a {JSON_NAME}, or a folder with one of them")
    names = (JSON_NAME, MODEL_NAME) if path.is_dir() else ("",)
    for file in (path / name for name in names if (path / name).is_file()):
        content = file.read_bytes()
        if not content.lstrip().startswith(b"{"):
            return SentencePieceTokenizer(content, origin)
        if is_huggingface(content, origin):
            return HuggingFaceTokenizer.read(file, origin)
    raise UserError(f"{origin}: has no {JSON_NAME} of Hugging Face's and no {MODEL_NAME}")


def is_huggingface(content: bytes, origin: str) -> bool:
    """Whether a JSON file is a tokenizer, and not words about one."""
    try:
        tree: Any = json.loads(content)
    except ValueError as error:
        raise UserError(f"{origin}: not JSON ({error})") from error
    return isinstance(tree, dict) and isinstance(tree.get("model"), dict)


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Whether a text of all sorts comes back whole, and the bytes of its pieces sum to its own."""
    ids = tokenizer.encode(_PROBE)
    return tokenizer.decode(ids) == _PROBE and int(tokenizer.token_bytes[ids].sum()) == len(_PROBE.encode())
