"""What turns prompts into ids and ids into text: the model's tokenizer, or, where it came without one, ids written as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from llm_jax.core.errors import UserError

if TYPE_CHECKING:
    from llm_jax.pretrained.model import PretrainedModel


class GenerationTokenizer(Protocol):
    """What generating needs of a tokenizer (`data.Tokenizer` is one)."""

    vocab_size: int
    eos_ids: tuple[int, ...]

    @property
    def bos_id(self) -> int:
        """What a prompt begins with."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""


class IdTokenizer:
    """Of a model without a tokenizer: its text is ids, "5 17 3 ". Prompts are ids too (`Request.ids`), any text raises UserError."""

    def __init__(self, opened: PretrainedModel) -> None:
        from llm_jax.data.huggingface_tokenizer import ids_in_configs
        from llm_jax.pretrained.save import source_folder

        source = source_folder(opened.path)
        self.opened = opened
        self.vocab_size = opened.config.vocab or 0
        self.eos_ids = tuple(ids_in_configs(source, "eos", str(source))) if source else ()

    @property
    def bos_id(self) -> int:
        return self.encode("")[0]

    def encode(self, text: str) -> list[int]:
        raise UserError(f"{self.opened.missing_tokenizer}, or give ids=1,2,3")

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(f"{i} " for i in ids)


def tokenizer_or_ids(opened: PretrainedModel) -> GenerationTokenizer:
    """The model's tokenizer, or what stands for it."""
    return opened.tokenizer_if_any or IdTokenizer(opened)
