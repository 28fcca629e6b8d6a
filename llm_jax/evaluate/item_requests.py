"""Items as token ids to be scored, and scored token ids as samples. Imports no JAX."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.evaluate.encode import (
    Convention,
    EncodedRequest,
    TooLong,
    check_one_bos,
    encode,
    encode_prompt,
)
from llm_jax.evaluate.task_scores import right_by
from llm_jax.evaluate.tasks.task import Item, Task

if TYPE_CHECKING:  # it starts JAX
    from llm_jax.evaluate.scorer import Scored

LEAST_ANSWER = 32
"""Tokens that a generated answer must have room for; more may end by the model's length, which is counted."""
BATCH_TOKENS = 16_384
"""Tokens of a batch, at least: what a killed evaluation repeats at most. A batch is whole items."""


@dataclass(frozen=True)
class EncodedItem:
    """An item with the token ids that its task needs."""

    item: Item
    choices: tuple[EncodedRequest, ...]
    unconditional: tuple[EncodedRequest, ...]
    """The choices after the item's unconditional context; empty without one."""
    prompt: EncodedRequest | None
    """The context that the model continues, of tasks that generate."""
    new_tokens: int = 0
    """Most tokens of the answer that it writes."""
    longer: bool = False
    """Whether it is longer than the rows that the model was trained on."""

    @property
    def requests(self) -> tuple[EncodedRequest, ...]:
        """All that is scored: the choices, then the unconditional ones."""
        return (*self.choices, *self.unconditional)

    @property
    def tokens(self) -> int:
        """Tokens that are read at least: a context that choices share counts once."""
        contexts = {encoded.context for encoded in self.requests}
        return sum(map(len, contexts)) + sum(len(encoded.continuation) for encoded in self.requests)

    @property
    def ids_hash(self) -> str:
        """16 hex digits of sha256 over the ids that the model reads, and where continuations begin."""
        parts = [(encoded.context, encoded.continuation) for encoded in self.requests]
        parts += [(self.prompt.context, ())] if self.prompt else []
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def encode_item(task: Task, item: Item, tokenizer: Tokenizer, convention: Convention) -> EncodedItem:
    """The ids of an item. Raises TooLong, and UserError for text without tokens."""
    choices = tuple(encode(tokenizer, convention, *pair) for pair in item.continuations())
    unconditional = tuple(
        encode(tokenizer, convention, item.unconditional, choice)
        for choice in (item.choices if item.unconditional and task.kind == "choice" else ())
    )
    prompt, room = None, 0
    if task.kind in ("generate", "code"):
        least = min(task.max_tokens, LEAST_ANSWER)
        prompt = encode_prompt(tokenizer, convention, item.context, least)
        room = task.max_tokens
        if convention.length is not None:
            room = min(room, convention.length + 1 - len(prompt.context))
    for encoded in (*choices, *unconditional, *([prompt] if prompt else [])):
        check_one_bos(convention, encoded.context)
    longest = max(
        len(one.context) + len(one.continuation) for one in (*choices, *([prompt] if prompt else []))
    )
    longer = convention.trained is not None and longest - 1 > convention.trained
    return EncodedItem(item, choices, unconditional, prompt, room, longer)


def encode_items(
    task: Task, items: Iterable[Item], tokenizer: Tokenizer, convention: Convention
) -> tuple[list[EncodedItem], int]:
    """(the items that can be scored, with their ids; how many were too long and are left out).

    Raises UserError where some are too long and the convention refuses that: before anything is scored, with
    their number and the longest.
    """
    found, too_long = [], []
    for item in items:
        try:
            found.append(encode_item(task, item, tokenizer, convention))
        except TooLong as error:
            too_long.append(error.tokens)
        except UserError as error:
            raise UserError(f"tasks={task.name}: item {item.id}: {error}") from error
    if too_long and (convention.too_long != "skip" or not found):
        raise UserError(too_long_line(task, convention, len(found), too_long))
    return found, len(too_long)


def too_long_line(task: Task, convention: Convention, rest: int, too_long: Sequence[int]) -> str:
    """The error for items that are too long, and what to do."""
    ways = {
        "refuse": "Give too_long=left, which leaves out the beginning of their contexts, or too_long=skip",
        "left": "Their continuations alone are too long: give too_long=skip",
        "skip": "Take a model that reads more, or fewer shots",
    }
    found = f"{len(too_long)} of {rest + len(too_long)} items are longer than the model reads"
    return (
        f"tasks={task.name}: {found}, {convention.length or 0:,} tokens (the longest has "
        f"{max(too_long):,}). {ways[convention.too_long]}"
    )


def batches_of(items: Sequence[EncodedItem]) -> Iterator[list[EncodedItem]]:
    """The items in batches of about `BATCH_TOKENS`, the long ones first: those of one batch are about as
    long, which wastes little on padding, and what doesn't fit into memory fails at once."""
    batch: list[EncodedItem] = []
    tokens = 0
    for item in sorted(items, key=lambda one: (-one.tokens, one.item.id)):
        batch.append(item)
        tokens += item.tokens
        if tokens >= BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def sample_of(task: Task, encoded: EncodedItem, scored: Sequence[Scored]) -> dict[str, Any]:
    """The sample of an item, of the scores of its `requests`; `task_scores` has the keys.

    Raises UserError for scores that are no numbers.
    """
    item, count = encoded.item, len(encoded.choices)
    choices = []
    for number, (text, one) in enumerate(zip(item.choices, scored[:count], strict=True)):
        shown = text.removeprefix(" ")  # the space that parts it from its context
        choice: dict[str, Any] = {
            "logprob": logprob_of(one, task, item),
            "tokens": len(one.logprobs),
            "characters": len(shown),
            "bytes": len(shown.encode()),
            "greedy": bool(np.all(one.greedy)),
        }
        if encoded.unconditional:
            choice["unconditional"] = logprob_of(scored[count + number], task, item)
        choices.append(choice)
    contexts = [*encoded.requests, *([encoded.prompt] if encoded.prompt else [])]
    sample: dict[str, Any] = {
        "id": item.id,
        "ids_hash": encoded.ids_hash,
        "source": item.source,
        "group": item.group,
        "context_tokens": max(len(one.context) for one in contexts),
        "choices": choices,
        "gold": item.gold,
        "truncated": any(one.dropped for one in contexts),
        "merged": any(one.merged for one in encoded.choices),
        "longer": encoded.longer,
    }
    if task.kind == "cloze":
        sample["right"] = int(choices[item.gold or 0]["greedy"])
    elif task.kind in ("choice", "pair"):
        right = right_by(sample, task.metric)  # type: ignore[arg-type]
        sample["right"] = int(right) if right in (0, 1) else right
    return sample


def logprob_of(scored: Scored, task: Task, item: Item) -> float:
    """The log-probability of a continuation in nats: the sum over its tokens, in float64."""
    total = float(np.sum(scored.logprobs, dtype=np.float64))
    if not np.isfinite(total):
        raise UserError(
            f"tasks={task.name}: item {item.id}: its log-probability is {total}: the weights, or what they "
            "compute in this dtype, are no finite numbers. Take an earlier step= or dtype=float32"
        )
    return total
