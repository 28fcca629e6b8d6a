"""The bodies of requests, field by field, and the engine's requests that they stand for."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import RESERVED
from llm_jax.data.conversation import turns
from llm_jax.generate.request import MAX_LOGPROBS, Request
from llm_jax.serve.errors import ApiError, context_too_long, of_user_error
from llm_jax.serve.models import ServedModel

MOST_MESSAGES = 256
MOST_STOPS = 16
COMPLETION_TOKENS = 16
"""`max_tokens` of a completion by itself, as OpenAI has it, or as many as fit."""


@dataclass(frozen=True)
class StreamOptions:
    """What a stream has beside the text."""

    include_usage: bool = False
    """A last chunk with the usage of tokens."""
    include_obfuscation: bool = False
    """Padding against who measures the sizes of packets: there is none here."""


@dataclass(frozen=True, kw_only=True)
class SamplingFields:
    """The fields that completions and chats have in common."""

    model: str | None = None
    """A name of /v1/models; the first model, if not given."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Ours, as in vLLM, and so are the next two."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | tuple[str, ...] = ()
    seed: int | None = None
    """Of the first choice; the others count up from it. Drawn, if not given. Taken modulo 2^32."""
    n: int = 1
    """Choices for each prompt."""
    return_tokens_as_token_ids: bool = False
    """Tokens beside log-probabilities are "token_id:17", as in vLLM: strings of two tokens may be equal."""

    @property
    def usage_chunk(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; empty ones are ignored, as OpenAI does."""
        given = (self.stop,) if isinstance(self.stop, str) else self.stop
        return tuple(dict.fromkeys(stop for stop in given if stop))

    def check_sampling(self, model: ServedModel) -> None:
        """Raises ApiError for values that no prompt could have."""
        require(1 <= self.n <= model.slots, "n", self.n, f"from 1 to {model.slots}, the server's slots")
        require(len(self.stops) <= MOST_STOPS, "stop", len(self.stops), f"at most {MOST_STOPS} strings")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: is for stream=true.", param="stream_options")
        if self.seed is not None:
            require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "an integer of 64 bits")

    def requests(
        self, model: ServedModel, ids: list[int], max_tokens: int | None, logprobs: bool, where: str
    ) -> list[Request]:
        """The engine's requests for a prompt, one for each choice.

        max_tokens: None: as many as fit. where: "messages" or "prompt". Raises ApiError for a prompt without
        room for its continuation, and for values out of range.
        """
        left = model.max_tokens - len(ids)
        if left < 1 or (max_tokens is not None and max_tokens > left):
            raise context_too_long(model.max_tokens, len(ids), max_tokens or 1, where, where)
        seed = secrets.randbits(32) if self.seed is None else self.seed
        made = [
            Request(
                ids=tuple(ids),
                max_tokens=left if max_tokens is None else max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                stop=self.stops,
                seed=(seed + choice) % 2**32,
                logprobs=MAX_LOGPROBS if logprobs else 0,
            )
            for choice in range(self.n)
        ]
        try:
            made[0].check()
        except UserError as error:
            raise of_user_error(error) from error
        return made


@dataclass(frozen=True, kw_only=True)
class CompletionBody(SamplingFields):
    """The body of POST /v1/completions."""

    prompt: str | tuple[int, ...] | tuple[str, ...] | tuple[tuple[int, ...], ...] = ""
    """A text, the ids of one, or a list of either."""
    logprobs: int | None = None
    """The most likely tokens at each position, with the chosen one."""
    echo: bool = False
    """Puts the prompt before the text, with its log-probabilities if `logprobs` is given."""
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, one or more."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)

    @property
    def new_tokens(self) -> int:
        """Most tokens of a continuation; 0 where only the prompt is scored."""
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def check(self, model: ServedModel) -> None:
        """Raises ApiError for values out of range."""
        self.check_sampling(model)
        require(bool(self.prompts), "prompt", "[]", "a text, token ids, or a list of them, not empty")
        require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs", self.logprobs, f"from 0 to {MAX_LOGPROBS}",
        )  # fmt: skip
        require(
            self.new_tokens >= (0 if self.echo else 1), "max_tokens", self.new_tokens,
            "at least 1 (0 with echo: only the prompt is scored)",
        )  # fmt: skip
        if self.best_of is not None and self.best_of != self.n:
            raise ApiError(
                400, f"best_of={self.best_of}: must be n ({self.n}), or left out.", param="best_of"
            )

    def ids(self, model: ServedModel, prompt: str | tuple[int, ...]) -> list[int]:
        """The token ids of a prompt: BOS and those of a text, or ids as they are. Raises ApiError for ids
        that the model hasn't."""
        if isinstance(prompt, str):
            return text_ids(model, prompt)
        require(bool(prompt), "prompt", "[]", "token ids, at least one")
        for token in prompt:
            require(0 <= token < model.vocab, "prompt", token, f"ids from 0 to {model.vocab - 1}")
        return list(prompt)


@dataclass(frozen=True, kw_only=True)
class ChatBody(SamplingFields):
    """The body of POST /v1/chat/completions."""

    messages: tuple[dict[str, Any], ...]
    max_completion_tokens: int | None = None
    """The present name of `max_tokens`."""
    logprobs: bool = False
    top_logprobs: int = 0
    """The most likely tokens at each position; with `logprobs`."""

    def check(self, model: ServedModel) -> None:
        """Raises ApiError for values out of range."""
        self.check_sampling(model)
        require(
            0 <= self.top_logprobs <= MAX_LOGPROBS, "top_logprobs", self.top_logprobs,
            f"from 0 to {MAX_LOGPROBS}",
        )  # fmt: skip
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: is for logprobs=true.", param="top_logprobs")
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ApiError(
                400,
                "max_tokens: differs from max_completion_tokens. Give one of the two.",
                param="max_tokens",
            )
        if self.new_tokens is not None:
            require(self.new_tokens >= 1, "max_tokens", self.new_tokens, "at least 1")

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of an answer; None: as many as fit."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def ids(self, model: ServedModel) -> list[int]:
        """The token ids of the conversation in the model's chat template."""
        return message_ids(model, self.messages)


def text_ids(model: ServedModel, text: str) -> list[int]:
    """BOS and the token ids of a text; names of control tokens in it are text. Raises ApiError."""
    try:
        return Request(text).prompt_ids(model.tokenizer)
    except UserError as error:
        raise of_user_error(error, "prompt") from error


def message_ids(model: ServedModel, messages: tuple[dict[str, Any], ...]) -> list[int]:
    """The token ids of a conversation up to where the answer begins. Raises ApiError."""
    require(len(messages) <= MOST_MESSAGES, "messages", len(messages), f"at most {MOST_MESSAGES}")
    plain = [message_of(message, f"messages[{i}]") for i, message in enumerate(messages)]
    try:
        return prompt_ids(
            model.chat_template(), turns(plain, "messages", "user"), None, model.opened.tokenizer
        )
    except UserError as error:
        raise of_user_error(error, "messages") from error


ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
"""Roles of the API → those that templates know."""
OF_MESSAGES = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
RETURNED = ("refusal", "annotations", "audio", "function_call")
"""What a message of an answer has beside, and is empty when clients send it back."""


def message_of(message: dict[str, Any], path: str) -> dict[str, Any]:
    """A message as templates read it: its content is one text. Raises ApiError."""
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(400, f"{path}.role: must be one of {', '.join(ROLES)}.", param=f"{path}.role")
    made = {"role": ROLES[role]}
    for key, value in message.items():
        if key not in OF_MESSAGES:
            if value and key != "train":
                raise ApiError(400, f"{path}.{key}: is not read from a message. Leave it out.", param=path)
        elif key == "content":
            made[key] = text_of_content(value, f"{path}.content")
        elif key != "role" and value not in (None, []):
            made[key] = value
    written = json.dumps(made, ensure_ascii=False)
    if any(mark in written for mark in RESERVED):
        problem = f"{path}: has one of the characters U+FDD0 to U+FDD2, which are no text."
        raise ApiError(400, problem, param=path)
    return made


def text_of_content(content: Any, path: str) -> Any:
    """The text of a message's content: itself, or its parts joined. Raises ApiError for images and others."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{path}: must be a string, or a list of parts.", param=path)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ApiError(
                400, f'{path}: the model reads text only; parts must be {{"type": "text", "text": "..."}}.',
                param=path,
            )  # fmt: skip
        texts.append(text)
    return "".join(texts)


def require(right: bool, key: str, value: object, expected: str) -> None:
    """Raises ApiError (400), naming the field, its value and what would be right, unless `right`."""
    if not right:
        raise ApiError(400, f"{key}={str(value)[:60]}: must be {expected}.", param=key)
