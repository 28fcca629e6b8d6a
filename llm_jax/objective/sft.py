"""Supervised fine-tuning: a model learns to answer, from conversations of which only its own turns are
trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llm_jax.data.chat_encoder import ChatEncoder, TooLong, TrainOn
from llm_jax.data.chat_template import find_template
from llm_jax.data.config import TokenizerConfig
from llm_jax.data.encoder import Encoder
from llm_jax.objective.next_token import NextToken


@dataclass(frozen=True)
class SFT(NextToken):
    """Cross-entropy of the tokens that the model is trained to write, a mean over all of a batch.

    Rows hold whole conversations, which don't see each other.
    """

    name: str = "sft"
    template: str = ""
    """How a conversation becomes a text: `chatml`, a file with a Jinja2 template, or (empty) the model's
    own."""
    train_on: TrainOn = "assistant"
    """What is trained: `assistant`, all that the model says; `completion`, its answer to a prompt;
    `last_turn`; `all`."""
    too_long: TooLong = "drop"
    """An example longer than a row is left out and counted (`drop`), an error, or `cut` at its end."""

    reads: ClassVar[Literal["text", "record"]] = "record"
    rows: ClassVar[Literal["cut", "whole"]] = "whole"

    def encoder(self, tokenizer: TokenizerConfig, settings: Any) -> Encoder:
        """Encodes conversations in the template."""
        template = find_template(self.template, tokenizer, "objective.template")
        return ChatEncoder(template, settings.sequence_length, self.train_on, self.too_long)
