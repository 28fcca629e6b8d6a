"""Encodes conversations: tokens, and which of them a model is trained to write.

A conversation is encoded as one text, as its template writes it. Control tokens are what the template writes;
what looks like one in a message stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import cache
from llm_jax.data.chat_template import PLAIN, ChatTemplate, Message
from llm_jax.data.config import TooLong, TrainOn
from llm_jax.data.conversation import read_example, says_nothing
from llm_jax.data.encoder import Encoded, left_out
from llm_jax.data.tokenizer import Tokenizer

EMPTY = "an answer is empty"
"""Why an example is left out in which the model would learn to say nothing."""


class Span(NamedTuple):
    """A part of a text that the model wrote, in characters."""

    begin: int
    end: int
    turn: int
    """The number of its message in the conversation; -1 where the template doesn't tell."""


class Written(NamedTuple):
    """A conversation as its template writes it."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ChatEncoder:
    """Turns records (`conversation.read_example`) into tokens and weights."""

    template: ChatTemplate
    length: int
    """The most tokens that an example may have: those of a row."""
    train_on: TrainOn = "assistant"
    too_long: TooLong = "drop"
    why_several: ClassVar[str] = (
        "the chat template writes earlier turns otherwise once others follow, so each turn is an example"
    )
    """Why a record may make more than one example, for the log."""

    @property
    def fingerprint(self) -> str:
        """Identifies all that the tokens depend on, beside the record and the tokenizer."""
        template = self.template
        return cache.fingerprint(
            "chat",
            3,
            template.source,
            sorted(template.variables.items()),
            *filter(None, [template.with_tools, template.date]),
            self.length,
            self.train_on,
            self.too_long,
        )

    def encode(self, text: str, tokenizer: Tokenizer) -> list[Encoded]:
        """The record's examples: one, or one for each turn of the model where the template writes earlier
        turns otherwise in the end.

        Raises UserError for a record that is no conversation, and for a template that can't be trained with.
        """
        example = read_example(text)
        if len(example.answers) != 1:
            raise UserError(f"is a {example.kind}; must have messages, or prompt and completion")
        messages = (*example.prompt, *example.answers[0])
        made = []
        for written in write(self.template, messages, example.tools, tokenizer):
            spans = self.chosen(written.spans, messages, len(example.prompt))
            if any(says_nothing(message) for message in spoken(spans, messages)):
                made.append(left_out(EMPTY))
            elif spans or self.train_on == "all":
                made.append(self.encoded(written.text, spans, tokenizer))
        return made or [left_out("nothing of it is trained")]

    def chosen(self, spans: Sequence[Span], messages: Sequence[Message], prompt: int) -> list[Span]:
        """The spans that are trained. prompt: the number of messages before the answer."""
        muted = {i for i, m in enumerate(messages) if m.get("train") is False or m.get("weight") == 0}
        last = max((span.turn for span in spans), default=-1)
        firsts = {"completion": prompt or last, "last_turn": last}
        first = firsts.get(self.train_on, -1)
        if (self.train_on in firsts or muted) and any(span.turn < 0 for span in spans):
            raise UserError(
                f"chat template {self.template.name}: it marks {len(spans)} parts of a conversation as "
                "the model's, which "
                "can't be told apart by turns; use data.train_on=assistant, and no message with train: false"
            )
        return [span for span in spans if span.turn >= first and span.turn not in muted]

    def encoded(self, text: str, spans: Sequence[Span], tokenizer: Tokenizer) -> Encoded:
        """The tokens of a text; those that overlap a span are trained."""
        ids, begins, ends = encode_plain(text, tokenizer)
        check_bos(ids, tokenizer, self.template)
        weights = np.full(len(ids), self.train_on == "all", np.uint8)
        for span in spans:
            inside = (begins < span.end) & (ends > span.begin)
            weights |= inside.astype(np.uint8)
            if span.turn >= 0 or span == spans[-1]:  # a part of a turn needn't end it
                check_stop(text[span.begin : span.end], ids[inside], tokenizer, self.template)
        if len(ids) > self.length:
            if self.too_long == "error":
                raise UserError(
                    f"has {len(ids):,} tokens, and a row {self.length:,} (train.sequence_length); use "
                    "longer rows, or "
                    "data.too_long=drop"
                )
            if self.too_long == "drop":
                return left_out("longer than a row (train.sequence_length)")
            ids, weights = ids[: self.length], weights[: self.length]
        if not weights[1:].any():
            return left_out("nothing of it is trained")
        return Encoded(ids, weights)


def spoken(spans: Sequence[Span], messages: Sequence[Message]) -> list[Message]:
    """The turns of the model in these spans; all of its turns, where the template doesn't tell which."""
    told = {span.turn for span in spans}
    return [
        message
        for i, message in enumerate(messages)
        if i in told or (-1 in told and message["role"] == "assistant")
    ]


def write(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, tokenizer: Tokenizer
) -> list[Written]:
    """A conversation as one text with the spans that the model wrote, or as several texts with one span each.

    Several, where a template writes a turn otherwise once another follows it (some leave out earlier
    reasoning): the model must be trained on what it sees when it writes. Raises UserError where a template
    has neither marks nor prefixes.
    """
    names = control_names(tokenizer)
    messages, tools = protect(messages, names), protect(tools, names)
    whole = template.render(messages, tools=tools)
    theirs = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if template.for_tools(tools).marks_generation:
        told = len(theirs) == len(whole.spans)
        spans = zip(whole.spans, theirs if told else [-1] * len(whole.spans), strict=True)
        return [Written(whole.text, tuple(Span(*span, turn) for span, turn in spans))]
    texts = []
    for i in theirs:
        before = template.render(messages[:i], tools=tools, add_generation_prompt=True).text
        after = template.render(messages[: i + 1], tools=tools).text
        if not after.startswith(before):
            raise UserError(
                f"chat template {template.name}: what it writes before an answer is not how the answer "
                "begins, and it has "
                "no {% generation %}, so what is trained is unknown; mark it there"
            )
        texts.append(Written(after, (Span(len(before), end_of_turn(after, len(before), tokenizer), i),)))
    if all(whole.text.startswith(one.text) for one in texts):
        return [Written(whole.text, tuple(span for one in texts for span in one.spans))]
    return texts


def end_of_turn(text: str, begin: int, tokenizer: Tokenizer) -> int:
    """Where a turn ends: after its last stop token, if it has one. What follows (a line end) the model never
    writes."""
    ends = [
        found + len(name)
        for name, i in tokenizer.control_tokens.items()
        if i in tokenizer.eos_ids and (found := text.rfind(name, begin)) >= 0
    ]
    return max(ends, default=len(text))


def check_stop(said: str, ids: np.ndarray, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Raises UserError unless a turn of the model has a token at which generation stops. ids: its tokens."""
    if np.isin(ids, tokenizer.eos_ids).any():
        return
    stops = ", ".join(name for name, i in tokenizer.control_tokens.items() if i in tokenizer.eos_ids)
    raise UserError(
        f"chat template {template.name}: what is trained of a turn ends with {said[-12:]!r}, and generation "
        f"stops at {stops}: the model would never learn to stop. Name the turn's last token in eos_token_id "
        "of a generation_config.json, add it to the tokenizer (tokenizer.control), or use a template that "
        "trains one of these"
    )


def check_bos(ids: np.ndarray, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Raises UserError for a conversation that begins with BOS twice, which no model has seen."""
    names = [name for name, i in tokenizer.control_tokens.items() if i == tokenizer.bos_id]
    if names and ids[:2].tolist() == [tokenizer.bos_id] * 2:
        raise UserError(
            f"chat template {template.name}: a conversation begins with {names[0]} twice. Take one of them "
            "out of the template (nothing else adds it), or use another chat.template"
        )


def control_names(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches the names of control tokens in a text."""
    names = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def prompt_ids(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, tokenizer: Tokenizer
) -> list[int]:
    """The tokens of a conversation up to where the model's next turn begins.

    What looks like a control token in a message stays text. Raises UserError where the template refuses these
    messages.
    """
    return encode_plain(prompt_text(template, messages, tools, tokenizer), tokenizer)[0].tolist()


def prompt_text(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, tokenizer: Tokenizer
) -> str:
    """The text of a conversation up to where the model's next turn begins, for `encode_plain`. Raises
    UserError where the template refuses these messages."""
    names = control_names(tokenizer)
    return template.render(
        protect(messages, names), tools=protect(tools, names), add_generation_prompt=True
    ).text


def protect(value: Any, names: re.Pattern[str]) -> Any:
    """Texts with `PLAIN` inside of whatever looks like a control token. Templates copy it; `encode_plain`
    takes it out of the tokens."""
    if isinstance(value, str):
        return names.sub(lambda found: found[0][0] + PLAIN + found[0][1:], value)
    if isinstance(value, Mapping):
        return {key: protect(inner, names) for key, inner in value.items()}
    if isinstance(value, Iterable):
        return [protect(inner, names) for inner in value]
    return value


def encode_plain(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, begins, ends) of a text: names of control tokens are these tokens, but for those with `PLAIN`
    inside.

    begins, ends: of each token in the text, in characters.
    """
    ids, spans = tokenizer.encode_spans(text)
    spans_N2 = np.array(spans, np.int64).reshape(-1, 2)
    marks = np.array([at for at, character in enumerate(text) if character == PLAIN], np.int64)
    # Where a character is several tokens (bytes), all but the last are empty, at its beginning.
    keep = ~(np.isin(spans_N2[:, 0], marks) & (spans_N2[:, 1] <= spans_N2[:, 0] + 1))
    return np.array(ids, np.int64)[keep], spans_N2[keep, 0], spans_N2[keep, 1]
