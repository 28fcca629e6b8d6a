"""Encoders turn a document into tokens and their weights; an objective may bring its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.data.config import ChatConfig, DataConfig, TokenizerConfig
from llm_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder may depend on: the parts of a run's configuration that decide about its tokens."""

    sequence_length: int
    """The tokens of a row: `train.sequence_length`."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The run's, whose folder may have a chat template."""
    data: DataConfig = field(default_factory=DataConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)


class Encoded(NamedTuple):
    """One document, or one example, as tokens."""

    tokens: np.ndarray
    """int [n], with its BOS and EOS."""
    weights: np.ndarray
    """uint8 [n]: 1 for a token whose prediction from the tokens before it is trained, else 0.

    The first token's is unused.
    """
    left_out: str = ""
    """Why it has no tokens; these are counted by reason, and logged."""
    value: float = 0.0
    """A number that goes with it: a label (1 or 0), or the margin of a pair."""


def left_out(reason: str) -> Encoded:
    """In place of an example that is left out."""
    return Encoded(np.zeros(0, np.int32), np.zeros(0, np.uint8), reason)


class Encoder(Protocol):
    """Turns a document into tokens and their weights.

    Without an encoder a document is BOS + text + EOS, all trained.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies everything that the result depends on except the text and the tokenizer; part of the
        token cache's key.
        """

    def encode(self, text: str, tokenizer: Tokenizer) -> list[Encoded]:
        """The examples that a document makes: mostly one. `left_out` stands for one that is not used.

        text: the document's text or, for an objective that `reads` records, the record in JSON. Raises
        UserError for one that can't be encoded.

        An encoder may also have a method `group(text) -> str`: documents of one group are held out together
        (answers to one prompt). Without it each is held out by itself. And `about(value) -> str`: what an
        example's value is, in words.
        """
