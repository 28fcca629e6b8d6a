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
    remedy = next((remedy for keys, remedy in OTHER_FORMS.items() if {*keys} <= {*record}), "")
    null = [key for keys in KEYS.values() for key in keys if key in record and record[key] is None]
    shown = ", ".join(map(str, record)) + (f" ({null[0]} is null)" if null else "")
    raise UserError(
        f"has the keys {shown}; must have messages, or prompt and completion (and label), or prompt, chosen "
        "and rejected" + (f". {remedy}" if remedy else "")
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
    # Parquet gives every message all fields, null where it has none.
    messages = tuple(
        {key: field for key, field in turn.items() if field is not None or key == "content"} for turn in value
    )
    for message in messages:
        check_message(message, name)
    return messages


OTHER_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""Roles of other forms of conversations (ShareGPT's) → what templates know them as."""
SHAREGPT = (
    "These are conversations in ShareGPT's form: rename from to role, value to content, human to user and "
    "gpt to assistant"
)
ALPACA = "Rename instruction to prompt (with the input after it, where there is one) and output to completion"
OTHER_FORMS = {
    ("conversations",): f"{SHAREGPT}, and conversations to messages",
    ("instruction", "output"): ALPACA,
    ("question", "answer"): "Rename question to prompt and answer to completion",
    ("query", "response"): "Rename query to prompt and response to completion",
}
"""Keys of records in other forms → what to do."""


def check_message(message: Message, name: str) -> None:
    """Raises UserError for a message without a role that templates know, or without content. name: of the
    field that it is in."""
    shown = json.dumps(message, ensure_ascii=False)[:80]
    role = message.get("role")
    if not isinstance(role, str):
        remedy = f". {SHAREGPT}" if "from" in message and "value" in message else ""
        raise UserError(f"{name} has a message without a role: {shown}{remedy}")
    if role in OTHER_ROLES:
        raise UserError(
            f"{name} has a message with the role {role}: {shown}. Rename {role} to {OTHER_ROLES[role]}, as "
            "chat templates know it (human to user, gpt to assistant)"
        )
    if message.get("content") is None and not message.get("tool_calls"):
        raise UserError(
            f"{name} has a message without content: {shown}. Give it a text, or leave the record out; "
            "content may be null only beside tool_calls"
        )


def says_nothing(message: Message) -> bool:
    """Whether a turn has no text but white space: no content, and nothing else that a template may write.

    >>> says_nothing({"role": "assistant", "content": " "})
    True
    >>> says_nothing({"role": "assistant", "content": "", "tool_calls": [{"name": "search"}]})
    False
    """
    silent = ("role", "name", "train", "weight")
    return not any(has_text(value) for key, value in message.items() if key not in silent)


def has_text(value: Any) -> bool:
    """Whether a field of a message, or what is in it, has text other than white space."""
    match value:
        case str():
            return bool(value.strip())
        case Mapping():
            return any(has_text(inner) for key, inner in value.items() if key != "type")
        case Sequence():
            return any(has_text(inner) for inner in value)
    return False


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
