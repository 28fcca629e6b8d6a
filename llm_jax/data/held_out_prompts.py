"""Held-out prompts of conversations, in their chat template: a trained model answers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import ChatTemplate, Message
from llm_jax.data.conversation import Example, read_example
from llm_jax.data.corpus import Corpus


class HeldOutPrompt(NamedTuple):
    """A prompt, as a conversation and as tokens."""

    where: str
    """The file and line of its record; empty for one that is of no record."""
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    """Up to where the answer begins."""
    record: Mapping[str, Any]
    """What it is of, with the right answer, and how answers are verified (`data.verify`) if they are."""


def held_out_prompts(corpus: Corpus, template: ChatTemplate, limit: int, shown: int) -> list[HeldOutPrompt]:
    """Prompts of the first `limit` held-out records: those with a verifier, and the first few others.

    shown: how many prompts there are at least, if there are so many records. Raises UserError for a record
    that the template refuses.
    """
    found: list[HeldOutPrompt] = []
    for i, (source, number, raw) in enumerate(corpus.held_out_texts()):
        if i == limit:
            break
        example, record = read_example(raw.decode("utf-8", "replace")), json.loads(raw)
        messages = prompt_of(example)
        if messages and (record.get("verify") or len(found) < shown):
            ids = prompt_ids(template, messages, example.tools, corpus.tokenizer)
            found.append(HeldOutPrompt(source.where(number), messages, tuple(ids), record))
    return found


def prompt_of(example: Example) -> tuple[Message, ...]:
    """The turns that the last answer of an example follows; empty where nothing precedes it."""
    if example.kind != "conversation":
        return example.prompt
    (turns,) = example.answers
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    return turns[:last]
