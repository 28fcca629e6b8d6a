"""Contexts of items as turns of a user, in a model's chat template (`chat=true`). Imports no JAX."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.data.chat_encoder import control_names, encode_plain, prompt_text, protect
from llm_jax.data.chat_template import ChatTemplate

NO_TEMPLATE = "leave chat=true out, or train it to answer first (experiment=sft)"
"""What to do with a model that has no chat template."""


@dataclass(frozen=True)
class ChatPrompts:
    """A model's chat template, with its tokenizer."""

    template: ChatTemplate
    tokenizer: Tokenizer

    @property
    def line(self) -> str:
        """What is done, in words, with what the tokens depend on."""
        day = f" on {self.template.date}" if "strftime_now" in self.template.source else ""
        version = hashlib.sha256(self.template.source.encode()).hexdigest()[:8]
        return (
            f"chat template {version}{day}: a context is one turn of the user, shots included, and its "
            "continuation begins the answer"
        )

    def ids(self, context: str, continuation: str = "") -> list[int]:
        """The tokens of a context in the template, up to where the answer begins, and of a continuation,
        without the space that parts it from its context elsewhere.

        What looks like a control token in either stays text. Raises UserError for an empty context.
        """
        if not context.strip():
            raise UserError("chat=true: has no context that could be the user's turn. Leave chat=true out")
        messages = [{"role": "user", "content": context}]
        text = prompt_text(self.template, messages, None, self.tokenizer)
        text += protect(continuation.removeprefix(" "), control_names(self.tokenizer))
        return encode_plain(text, self.tokenizer)[0].tolist()
