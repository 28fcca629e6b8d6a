"""Encodes answers to prompts, to be compared: pairs of a better and a worse one, or single ones with a label.

Only the tokens of an answer are trained, its stop token among them. No answer is cut, and both of a pair
have the same prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import cache
from llm_jax.data.chat_encoder import EMPTY, ChatEncoder, spoken, write
from llm_jax.data.chat_template import ChatTemplate, find_template
from llm_jax.data.conversation import Example, read_example, says_nothing
from llm_jax.data.encoder import Encoded, EncoderSettings, left_out
from llm_jax.data.tokenizer import Tokenizer

AnswerKind = Literal["preference", "label"]
KEYS = {
    "preference": "prompt, chosen and rejected",
    "label": "prompt, completion and label (or prompt, chosen and rejected)",
}
EQUAL = "chosen is equal to rejected"
TOO_LONG = "both answers, each with the prompt, are longer than a row (train.sequence_length)"


@dataclass(frozen=True)
class AnswerEncoder:
    """Turns records of one kind into tokens and weights: a pair makes two examples, the chosen one first,
    whose value is its margin; an answer with a label makes one, whose value is 1 if it is wanted, else 0.
    Where labels are asked for, the answers of a pair are a wanted and an unwanted one."""

    kind: AnswerKind
    template: ChatTemplate
    length: int
    """The tokens of a row: both answers of a pair, each with its prompt, must fit into one."""
    too_long: Literal["drop", "error"] = "drop"
    equal: Literal["error", "drop"] = "error"
    """Whether a pair of equal answers is a mistake in the data, or is left out and counted."""

    @property
    def fingerprint(self) -> str:
        """Identifies all that the tokens depend on, beside the record and the tokenizer."""
        return cache.fingerprint("answers", 4, self.kind, self.chat.fingerprint)

    @property
    def parts(self) -> tuple[str, ...]:
        """What the examples of a record are, in order."""
        return ("chosen", "rejected") if self.kind == "preference" else ()

    @property
    def refused(self) -> Mapping[str, str]:
        """Reasons to leave out an example that are mistakes in the data → what to do."""
        remedy = "Nothing can be learned from them: remove them"
        if self.kind == "preference":
            remedy += ", or use objective.equal_answers=drop"
        return {EQUAL: remedy} if self.equal == "error" else {}

    @property
    def chat(self) -> ChatEncoder:
        """Encodes a prompt with one of its answers."""
        return ChatEncoder(self.template, self.length, "completion", self.too_long)

    def group(self, text: str) -> str:
        """The prompt of a record: answers to one prompt are trained on or held out together."""
        return json.dumps(read_example(text).prompt, sort_keys=True)

    def encode(self, text: str, tokenizer: Tokenizer) -> list[Encoded]:
        """The record's examples. Raises UserError for a record of another kind, and for a template that
        can't be trained with."""
        example = read_example(text)
        if example.kind != self.kind and not (self.kind == "label" and example.kind == "preference"):
            raise UserError(f"is a {example.kind}; must have {KEYS[self.kind]}")
        if not example.prompt:
            raise UserError(
                "has no prompt: the record must have one, or chosen and rejected must begin with the same "
                "turns"
            )
        if len(example.answers) == 2 and example.answers[0] == example.answers[1]:
            return [left_out(EQUAL)]
        made = [self.answer(example, i, tokenizer) for i in range(len(example.answers))]
        if len(made) == 2 and len(made[0].tokens) and np.array_equal(made[0].tokens, made[1].tokens):
            return [left_out(EQUAL)]
        return made if self.kind == "label" else self.pair(made, example.margin)

    def pair(self, made: Sequence[Encoded], margin: float) -> list[Encoded]:
        """Both answers of a preference, whose value is its margin, or one example that is left out: both must
        fit into one row. Raises UserError for a pair that is too long, where `too_long` asks for that."""
        if reason := next((one.left_out for one in made if one.left_out), ""):
            return [left_out(reason)]
        if (size := sum(len(one.tokens) for one in made)) > self.length:
            if self.too_long == "error":
                raise UserError(
                    f"has {size:,} tokens in both answers with the prompt, and a row {self.length:,} "
                    "(train.sequence_length); use longer rows, or data.too_long=drop"
                )
            return [left_out(TOO_LONG)]
        return [one._replace(value=margin) for one in made]

    def answer(self, example: Example, which: int, tokenizer: Tokenizer) -> Encoded:
        """The prompt with one of its answers, whose value is 1 if it is wanted, else 0.

        An empty one that is wanted is left out; that one is not wanted can be learned. Raises UserError
        where the template writes the prompt otherwise before one turn of the answer than before another: what
        is compared would have several prompts.
        """
        messages = (*example.prompt, *example.answers[which])
        wanted = example.label if example.kind == "label" else which == 0
        *others, written = write(self.template, messages, example.tools, tokenizer)
        spans = self.chat.chosen(written.spans, messages, len(example.prompt))
        trained = {span.turn for one in others for span in one.spans if span.turn >= len(example.prompt)}
        if trained - {span.turn for span in spans}:
            raise UserError(
                f"chat template {self.template.name}: it writes an answer's earlier turns otherwise in the "
                "end, so answers of several turns can't be compared. Use answers of one turn, or another "
                "chat.template"
            )
        if not spans:
            return left_out("nothing of an answer is trained")
        if wanted and any(says_nothing(message) for message in spoken(spans, messages)):
            return left_out(EMPTY)
        return self.chat.encoded(written.text, spans, tokenizer)._replace(value=float(wanted))

    def about(self, value: float) -> str:
        """What the value of an example is, in words; empty for a margin of 0."""
        if self.kind == "label":
            return "wanted (label true)" if value else "not wanted (label false)"
        return f"margin {value:g}" if value else ""


def answer_encoder(
    kind: AnswerKind, settings: EncoderSettings, equal: Literal["error", "drop"] = "error"
) -> AnswerEncoder:
    """The encoder of a run. Raises UserError for settings of the data that answers can't have."""
    data = settings.data
    if data.too_long == "cut":
        raise UserError(
            "data.too_long=cut: answers that are compared aren't cut. Use data.too_long=drop, or longer rows "
            "(train.sequence_length)"
        )
    if data.train_on not in ("assistant", "completion"):
        raise UserError(
            f"data.train_on={data.train_on}: this objective is of the answers' tokens. Leave it out, or use "
            "completion"
        )
    template = find_template(settings.chat.template, settings.tokenizer, date=settings.chat.date)
    return AnswerEncoder(kind, template, settings.sequence_length, data.too_long, equal)
