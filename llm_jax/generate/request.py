"""What is asked of a model, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from llm_jax.core.errors import UserError, require
from llm_jax.generate.id_tokenizer import GenerationTokenizer

Reason = Literal["eos", "stop", "max_tokens", "positions", "cancelled"]
"""Why a text ended: the model ended it, a stop string, `max_tokens`, the end of the model's learned positions, or somebody's wish."""


@dataclass(frozen=True)
class Request:
    """A prompt to be continued, and how. The same request gives the same tokens, whatever else is asked for at the same time."""

    prompt: str = ""
    """What is continued, from the start of a document."""
    ids: tuple[int, ...] = ()
    """The same as token ids, taken as they are (no BOS is put before them), instead of `prompt`."""
    max_tokens: int = 256
    """Tokens of the continuation, at most."""
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
    """The text ends before the first of these."""
    seed: int = 0
    """Of the noise; the same seed and prompt give the same text."""
    logprobs: int = 0
    """So many of the most likely tokens are told with their log-probabilities at each position. (The chosen token's always is.)"""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (always the most likely token) or more")
        require(0 <= self.top_k < 2**31, "top_k", self.top_k, "a number of tokens, or 0 for all")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all tokens)")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 (all tokens) to 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "above 0 (1: off)")
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")
        require(0 <= self.logprobs <= MOST_LOGPROBS, "logprobs", self.logprobs, f"from 0 to {MOST_LOGPROBS}")
        require(all(self.stop), "stop", "", "some text")
        if self.ids and self.prompt:
            raise UserError(f"prompt={self.prompt}: the request has ids too; give one of the two")

    def prompt_ids(self, tokenizer: GenerationTokenizer) -> list[int]:
        """The tokens to be continued."""
        try:
            return list(self.ids) or [tokenizer.bos_id, *tokenizer.encode(self.prompt)]
        except UserError as error:
            raise UserError(f"prompt={self.prompt[:40]}: {error}") from error


MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Event:
    """What a step gave for one request: a token."""

    id: int
    token: int
    text: str
    """What may be shown now: a character that is not complete, or what may become a stop string, comes with a later event."""
    logprob: float
    """The natural logarithm of the model's probability of the token: of its logits as they are, whatever the settings."""
    top: tuple[tuple[int, float], ...] = ()
    """The `logprobs` most likely tokens and their log-probabilities."""
    finished: Reason | None = None


@dataclass
class Result:
    """All that has come of a request so far."""

    request: Request
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    """Of the continuation. With them the EOS or the tokens of the stop string that ended it."""
    logprobs: list[float] = field(default_factory=list)
    """Of each token."""
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    text: str = ""
    finished: Reason | None = None
    seconds_to_first: float | None = None
    """From `submit` to the first token, without the time that programs were compiled in."""
