"""Tokenizers side by side on small texts: languages, numbers, code and white space (samples.toml)."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from llm_jax.data import Tokenizer
from llm_jax.inspect.tokens import Token, Vocabulary


@dataclass(frozen=True)
class Sample:
    """A text that tokenizers are compared on."""

    name: str
    kind: Literal["language", "numbers", "code", "space"]
    text: str
    spaced: bool = True
    """Whether spaces divide it into words."""

    @property
    def words(self) -> int:
        """Runs of characters between white space."""
        return len(self.text.split())

    @property
    def digits(self) -> int:
        """Characters 0 to 9."""
        return len(re.findall("[0-9]", self.text))


@functools.cache
def samples() -> list[Sample]:
    """The built-in texts."""
    table = tomllib.loads((resources.files("llm_jax.inspect") / "samples.toml").read_text(encoding="utf-8"))
    return [Sample(name, **{**entry, "text": entry["text"].rstrip("\n")}) for name, entry in table.items()]


@dataclass(frozen=True)
class Measured:
    """A tokenizer on one sample."""

    sample: Sample
    parts: list[Token]
    lossless: bool
    """Whether decoding gives the text back, byte for byte."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text over tokens: higher is shorter."""
        return len(self.sample.text.encode()) / len(self.parts)

    @property
    def fertility(self) -> float | None:
        """Tokens per word (Rust et al. 2021), 1 at best; None where spaces divide no words."""
        return len(self.parts) / self.sample.words if self.sample.spaced else None

    @property
    def digits_per_token(self) -> float | None:
        """Digits over tokens that hold any: 1 where every digit is a token of its own. None without digits."""
        with_digits = sum(bool(re.search(rb"[0-9]", p.data)) for p in self.parts)
        return self.sample.digits / with_digits if self.sample.digits and with_digits else None

    @property
    def blank_per_token(self) -> float | None:
        """White-space characters over tokens that are nothing else: how well indents are taken together. None where there are no such tokens."""
        blank = [p.data for p in self.parts if p.data and not p.data.strip()]
        return sum(map(len, blank)) / len(blank) if blank else None

    def to_json(self) -> dict[str, Any]:
        """Its numbers."""
        return {
            "tokens": len(self.parts),
            "bytes_per_token": self.bytes_per_token,
            "fertility": self.fertility,
            "digits_per_token": self.digits_per_token,
            "blank_per_token": self.blank_per_token,
            "lossless": self.lossless,
        }


NUMBERS = ("7", "42", "1984", "65536", "3.14159", "1000000007")


@dataclass(frozen=True)
class Compared:
    """One tokenizer and what it makes of the samples."""

    name: str
    vocab_size: int
    measured: list[Measured]
    numbers: dict[str, list[Token]]
    """How single numbers fall into tokens."""


def measure(name: str, tokenizer: Tokenizer) -> Compared:
    """A tokenizer on all samples."""
    vocabulary = Vocabulary(tokenizer)
    made = []
    for sample in samples():
        ids = tokenizer.encode(sample.text)
        made.append(Measured(sample, vocabulary.pieces(ids), tokenizer.decode(ids) == sample.text))
    return Compared(name, tokenizer.vocab_size, made, {number: vocabulary.pieces(tokenizer.encode(number)) for number in NUMBERS})
