"""The part of a tokenizer that the engine needs, and a stand-in for models without one: their text is token
ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from llm_jax.core.errors import UserError
from llm_jax.data.huggingface_tokenizer import ids_in_configs
from llm_jax.pretrained.model import PretrainedModel


class GenerationTokenizer(Protocol):
    """The part of a tokenizer that generation uses. `data.Tokenizer` has it."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    """Token ids that end a text."""

    @property
    def bos_id(self) -> int:
        """The token that a prompt begins with."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """The ids of the control tokens, by name."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS. The name of a control token is text."""

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of `encode`, but names of control tokens are these tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""


class IdTokenizer:
    """The tokenizer of a model that came without one. It writes ids as text, "5 17 3 ", and encodes nothing:
    prompts are `Request.ids`."""

    def __init__(self, vocab_size: int, eos_ids: tuple[int, ...], reason: str) -> None:
        """reason: the error for a prompt that is text: which tokenizer is missing, and where."""
        self.vocab_size, self.eos_ids, self.reason = vocab_size, eos_ids, reason

    @property
    def bos_id(self) -> int:
        """Raises UserError: there is no BOS, because no prompt is text."""
        return self.encode("")[0]

    def encode(self, text: str) -> list[int]:
        """Raises UserError, whatever the text is."""
        raise UserError(f"{self.reason}, or give ids=1,2,3")

    encode_with_control = encode
    control_tokens: Mapping[str, int] = {}

    def decode(self, ids: Iterable[int]) -> str:
        """The ids in decimal, a space after each."""
        return "".join(f"{i} " for i in ids)


def tokenizer_or_ids(opened: PretrainedModel) -> GenerationTokenizer:
    """The model's tokenizer; for a model without one an `IdTokenizer` with the EOS that the folder's JSON
    files name."""
    if opened.tokenizer_if_any is not None:
        return opened.tokenizer_if_any
    folder = opened.folder.path if opened.folder else None
    eos_ids = tuple(ids_in_configs(folder, "eos", str(folder))) if folder else ()
    return IdTokenizer(opened.config.vocab or 0, eos_ids, opened.missing_tokenizer)
