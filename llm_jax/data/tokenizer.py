"""The interface of tokenizers, and the names of their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

MODEL_NAME = "tokenizer.model"
"""The file with a SentencePiece model."""
JSON_NAME = "tokenizer.json"
"""The file of a Hugging Face tokenizer.

In old run folders a file of this name describes a SentencePiece model instead.
"""
ABOUT_NAME = "about.json"
"""The description of a tokenizer that `save` writes beside its files."""
_PROBE = " a  b\t\n\n    if x_1:\r\n é e\u0301 日本 😀 \u00a0\ufb01 \u2581 <s>  "


class Tokenizer(Protocol):
    """Encodes text to token ids and decodes them. Documents are stored as BOS, text, EOS."""

    fingerprint: str
    """sha256 hex of everything that the ids of a text depend on."""
    vocab_size: int
    """The number of rows that an embedding needs; a model may have more."""
    bos_id: int
    """The token that begins a document.

    For a tokenizer without BOS (Qwen) it is EOS, which such models saw between documents.
    """
    eos_id: int
    """The token that ends a document."""
    eos_ids: tuple[int, ...]
    """All tokens that may end a generated text; `eos_id` is one of them."""
    pad_id: int
    """The token of padding, where segments are 0."""
    lossless: bool
    """True if decoding returns every encoded text, and its `token_bytes` sum to its bytes (tested with one
    text).
    """

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes of text of each token; 0 for control and unknown tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. The name of a control token is encoded as text.

        Raises UserError for half a surrogate pair.
        """

    def encode_chunks(self, text: str) -> Iterator[list[int]]:
        """The ids of `encode` in order, for a bounded chunk of text at a time if the tokenizer allows it."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without control tokens; bytes that are not UTF-8 become U+FFFD."""

    def vocabulary(self) -> list[str]:
        """The string of every token as the tokenizer's file writes it, by id."""

    def save(self, folder: Path | str) -> None:
        """Writes the files that `load_tokenizer` reads, unchanged, and an `about.json` that
        describes them.
        """


def is_lossless(tokenizer: Tokenizer) -> bool:
    """True if a text with spaces, controls and many scripts is decoded unchanged, and its `token_bytes` sum
    to its bytes.
    """
    ids = tokenizer.encode(_PROBE)
    return tokenizer.decode(ids) == _PROBE and int(tokenizer.token_bytes[ids].sum()) == len(_PROBE.encode())
