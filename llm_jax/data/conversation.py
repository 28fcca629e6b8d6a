"""Records of post-training data as conversations. What kind a record is, is told by its keys:

| keys                      | kind         | what it is                                     |
|---------------------------|--------------|------------------------------------------------|
| messages                  | conversation | turns of a conversation                        |
| chosen, rejected          | preference   | two answers to a prompt, the better one first  |
| prompt, completion, label | label        | an answer that is wanted (true) or not (false) |
| prompt, completion        | completion   | an answer to a prompt                          |
| prompt                    | prompt       | to be answered                                 |

A prompt or an answer is a text, or messages. `chosen` and `rejected` may each hold the whole conversation;
the prompt is then what both begin with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from llm_jax.core.errors import UserError
from llm_jax.data.chat_template import RESERVED, Message

Kind = Literal["conversation", "preference", "label", "completion", "prompt"]
KEYS: dict[Kind, tuple[str, ...]] = {
    "conversation": ("messages",),
    "preference": ("chosen", "rejected"),
    "label": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
    "prompt": ("prompt",),
}
"""The keys of each kind; a record is of the first kind whose keys it has."""


class Example(NamedTuple):
    """A prompt and one answer to it, or more."""

    kind: Kind
    prompt: tuple[Message, ...]
    """The turns that the answers follow; empty for a conversation, all of whose turns are in its answer."""
    answers: tuple[tuple[Message, ...], ...]
    """Turns: one answer; two for a preference, the better one first; none for a prompt."""
    label: bool = True
    tools: tuple[Any, ...] | None = None
    """Descriptions of the functions that the model may call, as templates take them."""
    margin: float = 0.0
    """By how much the better answer of a preference is better, in units of rewards."""


def kind_of(record: Mapping[str, Any]) -> Kind:
    """The kind of a record. Raises UserError where its keys fit none.

    >>> kind_of({"prompt": "a", "chosen": "b", "rejected": "c"})
    'preference'
    """
    for kind, keys in KEYS.items():
        if all(record.get(key) is not None for key in keys):
            return kind
    raise UserError(
        f"has the keys {', '.join(map(str, record))}; must have messages, or prompt and completion (and "
        "label), or "
        "prompt, chosen and rejected"
    )


def read_example(text: str) -> Example:
    """The example of a record in JSON. Raises UserError for one that is none."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise UserError(f"is no object but a {type(record).__name__}")
    if mark := next(
        (mark for mark in RESERVED if mark in text or f"\\u{ord(mark):04x}" in text.lower()), None
    ):
        raise UserError(f"has the character U+{ord(mark):04X}, which is no text")
    if "\\ud" in text.lower():
        check_surrogates(record)
    kind = kind_of(record)
    common: dict[str, Any] = {"tools": tools_of(record.get("tools"))}
    if kind == "conversation":
        return Example(kind, (), (turns(record["messages"], "messages", "user"),), **common)
    prompt = turns(record["prompt"], "prompt", "user") if record.get("prompt") is not None else ()
    names = {"preference": ("chosen", "rejected"), "prompt": ()}.get(kind, ("completion",))
    answers = [turns(record[name], name, "assistant") for name in names]
    if kind == "preference" and not prompt:
        prompt = shared_turns(*answers)
        answers = [answer[len(prompt) :] for answer in answers]
    if kind == "label":
        common["label"] = label_of(record["label"])
    if kind == "preference" and record.get("margin") is not None:
        common["margin"] = margin_of(record["margin"])
    if any(not answer for answer in answers):
        raise UserError("has an answer without a turn; chosen and rejected must differ in their last turns")
    return Example(kind, prompt, tuple(answers), **common)


def turns(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """The messages of a field; a text is one of `role`. Raises UserError for anything else."""
    if isinstance(value, str):
        return ({"role": role, "content": value},)
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value) or not value:
        raise UserError(f'{name} must be a text, or messages like [{{"role": "user", "content": "..."}}]')
    for turn in value:
        if not isinstance(turn.get("role"), str):
            raise UserError(
                f"{name} has a message without a role: {json.dumps(turn, ensure_ascii=False)[:80]}"
            )
    # Parquet gives every message all fields, null where it has none.
    return tuple(
        {key: field for key, field in turn.items() if field is not None or key == "content"} for turn in value
    )


def shared_turns(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns that two conversations begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return one[:count]


def check_surrogates(record: Any) -> None:
    """Raises UserError for half a surrogate pair, which no tokenizer can encode."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise UserError(f"has the character U+{half:04X}, half a surrogate pair, which is no text") from None


def tools_of(value: Any) -> tuple[Any, ...] | None:
    """The tools of a record: a list, or its JSON. Raises UserError for anything else."""
    if isinstance(value, str) and value.strip():  # Parquet has no column of objects of any form
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(
                f"tools must be a list of functions, or its JSON, and is {value[:40]!r}"
            ) from None
    if not value or isinstance(value, str):
        return None
    if not isinstance(value, list):
        raise UserError(f"tools must be a list of functions, and is: {json.dumps(value)[:40]}")
    return tuple(value)


def label_of(value: Any) -> bool:
    """The label of an answer. Raises UserError unless it is true or false, or 1 or 0."""
    if value in (True, False, 0, 1):
        return bool(value)
    raise UserError(f"label must be true or false, and is {value!r}")


def margin_of(value: Any) -> float:
    """The margin of a preference. Raises UserError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"margin must be a number, and is {value!r}")
    return float(value)
