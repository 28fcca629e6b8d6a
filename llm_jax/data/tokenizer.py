"""What a tokenizer is, whatever it was made by, and the one function that reads one from its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

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

    def encode_chunks(self, text: str) -> Iterator[list[int]]:
        """What `encode` gives, a bounded stretch of text at a time where the tokenizer allows that."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control pieces are silent, bytes that are not UTF-8 become U+FFFD."""

    def pieces(self) -> list[str]:
        """Every piece as the tokenizer's own file writes it, for looking at."""

    def save(self, folder: Path | str) -> None:
        """Writes the files that `load_tokenizer` reads, as they were, and a few words about them."""


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Whether a text of all sorts comes back whole, and the bytes of its pieces sum to its own."""
    ids = tokenizer.encode(_PROBE)
    return tokenizer.decode(ids) == _PROBE and int(tokenizer.token_bytes[ids].sum()) == len(_PROBE.encode())
