"""How a document becomes tokens, and which of them are trained: the part of the data that an objective may replace."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.data.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """One document, or one example, as tokens."""

    tokens: np.ndarray
    """int [n], with its BOS and EOS."""
    weights: np.ndarray
    """uint8 [n]: 1 where the token is trained on, which is to say predicted from those before it, else 0. The first one never is."""


class Encoder(Protocol):
    """From a document's text to its tokens and their weights. Without one, a document is BOS + text + EOS, all trained."""

    fingerprint: str
    """Names everything that the result depends on beside the text and the tokenizer: the token cache is keyed by it."""

    def encode(self, text: str, tokenizer: Tokenizer) -> Encoded:
        """The document's tokens and weights. Raises UserError for a text that can't be encoded."""
