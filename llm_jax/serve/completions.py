"""POST /v1/completions: a model continues texts or token ids, and scores them (`echo`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llm_jax.evaluate.scorer import Scored, ScoreRequest
from llm_jax.generate.request import Request
from llm_jax.serve.answer import FINISH, Answer
from llm_jax.serve.bodies import CompletionBody
from llm_jax.serve.errors import context_too_long
from llm_jax.serve.logprobs import CompletionLogprobs, ScoredToken, of_event, of_prompt
from llm_jax.serve.models import ServedModel
from llm_jax.serve.state import state_of


async def completions(http: HttpRequest) -> Response:
    """The endpoint."""
    server = state_of(http)
    body = await server.read(http, CompletionBody)
    model = server.model(body.model)
    body.check(model)
    server.check_size(model, len(body.prompts) * body.n)
    prompts, requests = await asyncio.to_thread(read_prompts, body, model)
    return await CompletionAnswer(server, model, body, prompts, requests).respond(http)


def read_prompts(body: CompletionBody, model: ServedModel) -> tuple[list[list[int]], list[Request]]:
    """(token ids of each prompt, the engine's requests). Raises ApiError."""
    prompts = [body.ids(model, prompt) for prompt in body.prompts]
    requests = []
    for ids in prompts:
        if body.new_tokens:
            new = body.new_tokens
            if body.max_tokens is None:
                new = max(1, min(new, model.max_tokens - len(ids)))
            requests += body.requests(model, ids, new, body.logprobs is not None, "prompt")
        elif len(ids) > model.max_tokens:
            raise context_too_long(model.max_tokens, len(ids), 0, "prompt", "prompt")
    return prompts, requests


class CompletionAnswer(Answer):
    """Continuations of one or more prompts, `n` of each."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"
    body: CompletionBody

    @property
    def count(self) -> int:
        """Choices of all prompts."""
        return len(self.prompts) * self.body.n

    async def choices(self) -> list[dict[str, Any]]:
        """All choices, when they have ended."""
        texts, tokens = await self.prompt_parts()
        reasons: list[str | None] = ["length"] * self.count
        async for part in self.parts():
            i = part.number
            texts[i] += part.text
            if self.has_logprobs:
                tokens[i] += map(of_event, part.events)
            reasons[i] = FINISH[part.events[-1].finished]
        return [
            {
                "index": i,
                "text": texts[i],
                "logprobs": self.parts_of_logprobs().part(tokens[i]) if self.has_logprobs else None,
                "finish_reason": reasons[i],
            }
            for i in range(self.count)
        ]

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The prompt if it is echoed, then parts of the text, the last one with the reason."""
        texts, tokens = await self.prompt_parts()
        parts = [self.parts_of_logprobs() for _ in range(self.count)]

        def chunk(i: int, text: str, finish: str | None = None) -> dict[str, Any]:
            logprobs = None
            if self.has_logprobs:
                logprobs = parts[i].part(tokens[i])
                tokens[i].clear()
            return self.chunk(i, finish, text=text, logprobs=logprobs)

        if self.body.echo:
            for i, text in enumerate(texts):
                yield chunk(i, text, None if self.body.new_tokens else "length")
        async for part in self.parts():
            i, finish = part.number, FINISH[part.events[-1].finished]
            if self.has_logprobs:
                tokens[i] += map(of_event, part.events)
            if part.text or finish:
                yield chunk(i, part.text, finish)

    async def prompt_parts(self) -> tuple[list[str], list[list[ScoredToken]]]:
        """(text, tokens) that each choice begins with: those of its prompt, if it is echoed."""
        texts: list[str] = []
        tokens: list[list[ScoredToken]] = []
        scored = await self.scored_prompts()
        for prompt, ids, scores in zip(self.body.prompts, self.prompts, scored, strict=True):
            text = prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)
            for _ in range(self.body.n):
                texts.append(text if self.body.echo else "")
                tokens.append(of_prompt(ids, scores) if self.body.echo and self.has_logprobs else [])
        return texts, tokens

    async def scored_prompts(self) -> list[Scored | None]:
        """The scores of each prompt's tokens after the first; None where there are none, or none are
        needed."""
        found: list[Scored | None] = [None] * len(self.prompts)
        if self.body.echo and self.has_logprobs:
            longer = [i for i, ids in enumerate(self.prompts) if len(ids) > 1]
            wanted = [ScoreRequest((self.prompts[i][0],), tuple(self.prompts[i][1:])) for i in longer]
            if wanted:
                self.scoring = self.server.thread.score(self.model, wanted)
                for i, scores in zip(longer, await self.scoring, strict=True):
                    found[i] = scores
        return found

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities were asked for."""
        return self.body.logprobs is not None

    def parts_of_logprobs(self) -> CompletionLogprobs:
        """The log-probabilities of a choice, from its first token on."""
        return CompletionLogprobs(
            self.model.strings, self.body.logprobs or 0, self.body.return_tokens_as_token_ids
        )
