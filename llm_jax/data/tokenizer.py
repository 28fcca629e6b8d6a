"""The interface of tokenizers, and the names of their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
_PROBES = (
    " a  b\t\n\n    if x_1:\r\n é e\u0301 日本 😀 \u00a0\ufb01 \u2581 <s>  ",
    "the model", " the", "two  spaces", "the end ", "A", "é", "e\u0301", "日本", "😀", "\ufb01", "\u2581",
    "\u00a0", "\t", "\n", "\r\n",
)  # fmt: skip
"""Texts that a lossless tokenizer returns: all at once, and the kinds that tokenizers change one by one."""


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
    """True if decoding returns every encoded text, and its `token_bytes` sum to its bytes, as tested with a
    few texts.
    """
    remarks: tuple[str, ...]
    """Texts that it changes, with what becomes of them, and settings of its files that have no effect, for a
    log line."""

    @property
    def puts_bos(self) -> bool:
        """Whether the tokenizer's own files put BOS before every text, as its model was trained."""

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes of text of each token; 0 for control and unknown tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. The name of a control token is encoded as text.

        Raises UserError for half a surrogate pair.
        """

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of `encode`, but names of control tokens are these tokens: for prompts that ask for it."""

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(the ids of `encode_with_control`, where each token begins and ends in the text, in characters)."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """The ids of the control tokens, by name."""

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


def text_changes(tokenizer: Tokenizer, names: Iterable[str]) -> tuple[str, ...]:
    """The texts of a few that a tokenizer changes, or whose bytes its `token_bytes` don't sum to, in words.

    They have spaces, controls and many scripts, and `names`: of control tokens, which are text in a text, and
    of tokens that may take the spaces around them.
    """
    whole, *parts = _PROBES
    named = [f"a{name}b {name} c" for name in sorted(names)]
    found = [change for text in [*parts, *named] if (change := _change(tokenizer, text))]
    if not found and (change := _change(tokenizer, " ".join([whole, *named]))):
        found = [change]
    return tuple(found)


def _change(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text)
    if (decoded := tokenizer.decode(ids)) != text:
        return f"{text!a} becomes {decoded!a}"
    size, right = int(tokenizer.token_bytes[ids].sum()), len(text.encode())
    return f"{text!a} counts as {size} bytes for {right}" if size != right else ""


def remark_line(remarks: tuple[str, ...]) -> str:
    """The end of a line about a tokenizer: its remarks, the first few in full."""
    more = f" and {len(remarks) - 3} more" if len(remarks) > 3 else ""
    return f"; it changes text or ignores a setting: {', '.join(remarks[:3])}{more}" if remarks else ""
