"""Supervised fine-tuning: a model learns to answer, from conversations of which only its own turns are
trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm_jax.data.chat_encoder import ChatEncoder
from llm_jax.data.chat_template import find_template
from llm_jax.data.encoder import Encoder, EncoderSettings
from llm_jax.objective.next_token import NextToken


@dataclass(frozen=True)
class SFT(NextToken):
    """Cross-entropy of the tokens that the model is trained to write, a mean over all of a batch.

    Rows hold whole conversations, which don't see each other. `chat.template`, `data.train_on` and
    `data.too_long` decide about their tokens.
    """

    name: str = "sft"

    reads: ClassVar[Literal["text", "record"]] = "record"
    rows: ClassVar[Literal["cut", "whole"]] = "whole"

    def encoder(self, settings: EncoderSettings) -> Encoder:
        """Encodes conversations in the template."""
        template = find_template(settings.chat.template, settings.tokenizer, date=settings.chat.date)
        return ChatEncoder(template, settings.sequence_length, settings.data.train_on, settings.data.too_long)
