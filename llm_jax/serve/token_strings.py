"""Tokens as the API shows them beside log-probabilities: a string, and bytes."""

from __future__ import annotations

from llm_jax.data.token_labels import Token, Vocabulary
from llm_jax.data.tokenizer import Tokenizer


class TokenStrings:
    """The strings of a vocabulary's tokens. For a model without a tokenizer (None): "#17"."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.vocabulary = Vocabulary(tokenizer)

    def text(self, i: int) -> str:
        """The token's text; the name of a control token; "bytes:\\xe2\\x82" for part of a character, as
        OpenAI has it."""
        return string_of(self.vocabulary[i])

    def bytes(self, i: int) -> list[int]:
        """The bytes of the token's text; those of its name, for a control token."""
        token = self.vocabulary[i]
        return list(token.data or token.name.encode())

    def characters(self, i: int) -> int:
        """How many characters begin in the token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.vocabulary[i].data)


def string_of(token: Token) -> str:
    """The string of a token.

    >>> string_of(Token(5, b" a")), string_of(Token(1, b"", "<s>")), string_of(Token(7, b"\\xe2\\x82"))
    (' a', '<s>', 'bytes:\\\\xe2\\\\x82')
    """
    if not token.data:
        return token.name
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
