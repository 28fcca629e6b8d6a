"""Encoders turn a document into tokens and their weights; an objective may bring its own."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.data.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """One document, or one example, as tokens."""

    tokens: np.ndarray
    """int [n], with its BOS and EOS."""
    weights: np.ndarray
    """uint8 [n]: 1 for a token whose prediction from the tokens before it is trained, else 0.

    The first token's is unused.
    """


class Encoder(Protocol):
    """Turns a document's text into tokens and their weights.

    Without an encoder a document is BOS + text + EOS, all trained.
    """

    fingerprint: str
    """Identifies everything that the result depends on except the text and the tokenizer; part of the token
    cache's key.
    """

    def encode(self, text: str, tokenizer: Tokenizer) -> Encoded:
        """The document's tokens and weights; none at all to skip it.

        Raises UserError for a text that can't be encoded.
        """
