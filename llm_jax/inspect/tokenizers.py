"""Measures tokenizers on small sample texts: languages, numbers, code and white space (samples.toml)."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from llm_jax.data import Tokenizer
from llm_jax.data.token_labels import Token, Vocabulary


@dataclass(frozen=True)
class Sample:
    """A text that tokenizers are compared on."""

    name: str
    kind: Literal["language", "numbers", "code", "space"]
    text: str
    spaced: bool = True
    """True if spaces divide the text into words."""

    @property
    def words(self) -> int:
        """Number of words: runs of characters between white space."""
        return len(self.text.split())

    @property
    def digits(self) -> int:
        """Number of characters 0 to 9."""
        return len(re.findall("[0-9]", self.text))


@functools.cache
def samples() -> list[Sample]:
    """The sample texts of samples.toml."""
    table = tomllib.loads((resources.files("llm_jax.inspect") / "samples.toml").read_text(encoding="utf-8"))
    return [Sample(name, **{**entry, "text": entry["text"].rstrip("\n")}) for name, entry in table.items()]


@dataclass(frozen=True)
class SampleTokens:
    """The tokens of one sample, and measures of them."""

    sample: Sample
    tokens: list[Token]
    lossless: bool
    """True if decoding returns the text byte for byte."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text per token; higher is better."""
        return len(self.sample.text.encode()) / len(self.tokens)

    @property
    def fertility(self) -> float | None:
        """Tokens per word (Rust et al. 2021), 1 at best; None for a language without spaces."""
        return len(self.tokens) / self.sample.words if self.sample.spaced else None

    @property
    def digits_per_token(self) -> float | None:
        """Digits per token that contains any; 1 if every digit is its own token. None for a text without
        digits."""
        with_digits = sum(bool(re.search(rb"[0-9]", p.data)) for p in self.tokens)
        return self.sample.digits / with_digits if self.sample.digits and with_digits else None

    @property
    def blank_per_token(self) -> float | None:
        """White-space characters per token of nothing else: how well indents are merged. None if there is no
        such token."""
        blank = [p.data for p in self.tokens if p.data and not p.data.strip()]
        return sum(map(len, blank)) / len(blank) if blank else None

    def to_json(self) -> dict[str, Any]:
        """The measures as plain data for inspect.json."""
        return {
            "tokens": len(self.tokens),
            "bytes_per_token": self.bytes_per_token,
            "fertility": self.fertility,
            "digits_per_token": self.digits_per_token,
            "blank_per_token": self.blank_per_token,
            "lossless": self.lossless,
        }


NUMBERS = ("7", "42", "1984", "65536", "3.14159", "1000000007")


@dataclass(frozen=True)
class TokenizerMeasurement:
    """One tokenizer, measured on all samples."""

    name: str
    vocab_size: int
    measured: list[SampleTokens]
    numbers: dict[str, list[Token]]
    """The tokens of each number in `NUMBERS`."""


def measure(name: str, tokenizer: Tokenizer) -> TokenizerMeasurement:
    """Measures a tokenizer on all samples. name: as the page calls it."""
    vocabulary = Vocabulary(tokenizer)
    made = []
    for sample in samples():
        ids = tokenizer.encode(sample.text)
        made.append(SampleTokens(sample, vocabulary.tokens(ids), tokenizer.decode(ids) == sample.text))
    return TokenizerMeasurement(
        name,
        tokenizer.vocab_size,
        made,
        {number: vocabulary.tokens(tokenizer.encode(number)) for number in NUMBERS},
    )
