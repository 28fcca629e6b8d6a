"""Requests to continue prompts, and their results. Imports no JAX: a command checks its requests before JAX
starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llm_jax.core.arithmetic import FLOAT32
from llm_jax.core.errors import UserError, require

if TYPE_CHECKING:  # it opens models, with JAX
    from llm_jax.generate.id_tokenizer import GenerationTokenizer

Reason = Literal["eos", "stop", "max_tokens", "positions", "cancelled"]
"""Why a text ended: the model wrote EOS, a stop string came, the request's `max_tokens` or the model's
learned positions were used up, or `Engine.cancel` was called."""

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Request:
    """A prompt to be continued, and how. Equal requests give equal tokens, whatever other requests run beside
    them."""

    prompt: str = ""
    """Text that is continued, from the start of a document."""
    ids: tuple[int, ...] = ()
    """The prompt as token ids, used in place of `prompt` and as they are: no BOS is put before them."""
    messages: tuple[Any, ...] = ()
    """The turns of a conversation that the model is to answer; `chat.in_template` makes `ids` of them."""
    max_tokens: int = 256
    """Maximum tokens of the continuation."""
    temperature: float = 1.0
    """Logits are divided by it; 0: always the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability are drawn from; 1: all."""
    min_p: float = 0.0
    """Only tokens at least this times as likely as the most likely one are drawn from; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and the continuation so far become less likely; 1: off."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings; the name of a control token stands for the token
    too."""
    seed: int = 0
    """Seed of the sampling noise. Equal seeds and prompts give equal text."""
    logprobs: int = 0
    """Number of most likely tokens that are reported with their log-probabilities at each position. (The
    chosen token's is always reported.)"""
    control: bool = False
    """Whether names of control tokens in the prompt (<|im_start|>) are these tokens; else they are text."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        require(
            0 <= self.temperature <= FLOAT32[1],
            "temperature",
            self.temperature,
            f"0 (always the most likely token) or more, up to {FLOAT32[1]:.2g}",
        )
        require(0 <= self.top_k < 2**31, "top_k", self.top_k, "a number of tokens, or 0 for all")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all tokens)")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 (all tokens) to 1")
        require(
            FLOAT32[0] <= self.repetition_penalty <= FLOAT32[1],
            "repetition_penalty",
            self.repetition_penalty,
            "above 0 (1: off), from {:.2g} to {:.2g}".format(*FLOAT32),
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")
        require(0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, f"from 0 to {MAX_LOGPROBS}")
        require(all(self.stop), "stop", "", "some text")
        if self.prompt and (self.ids or self.messages):
            other = "ids" if self.ids else "messages"
            raise UserError(f"prompt={self.prompt}: the request has {other} too. Give one of the two")

    def prompt_ids(self, tokenizer: GenerationTokenizer) -> list[int]:
        """The token ids of the prompt: `ids`, or BOS and the tokens of `prompt`, which may name BOS itself
        where control tokens are asked for.

        Raises UserError for text that has no tokens.
        """
        if self.messages and not self.ids:
            raise UserError("messages: are in no chat template yet (llm_jax.generate.chat.in_template)")
        if self.ids:
            return list(self.ids)
        try:
            bos = [tokenizer.bos_id]
            ids = (
                tokenizer.encode_with_control(self.prompt) if self.control else tokenizer.encode(self.prompt)
            )
            return ids if self.control and ids[:1] == bos else bos + ids
        except UserError as error:
            raise UserError(f"prompt={self.prompt[:40]}: {error}") from error


@dataclass(frozen=True)
class Event:
    """One new token of one request."""

    id: int
    """Id of the request, as `Engine.submit` returned it."""
    token: int
    text: str
    """Text that is now certain. An incomplete character, or the possible beginning of a stop string, comes
    with a later event."""
    logprob: float
    """Log-probability of the token in nats, from the model's logits as they are: before temperature, cuts and
    penalty."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the `Request.logprobs` most likely tokens, best first."""
    finished: Reason | None = None
    """Why the text ended with this token; None: it continues."""


@dataclass
class Result:
    """Everything that a request has produced so far."""

    request: Request
    prompt_tokens: int
    """Number of tokens of the prompt."""
    tokens: list[int] = field(default_factory=list)
    """Token ids of the continuation, including the EOS or the tokens of the stop string that ended it."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token (`Event.logprob`)."""
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    """`Event.top` of each token; empty where `Request.logprobs` is 0."""
    text: str = ""
    finished: Reason | None = None
    """Why the text ended; None while the request waits or runs."""
    seconds_to_first: float | None = None
    """Seconds from `Engine.submit` to the first token, compilation excluded."""
