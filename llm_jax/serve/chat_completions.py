"""POST /v1/chat/completions: a model answers a conversation, in its chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llm_jax.serve.answer import FINISH, Answer
from llm_jax.serve.bodies import ChatBody
from llm_jax.serve.logprobs import ScoredToken, chat_logprobs, of_event
from llm_jax.serve.state import state_of


async def chat_completions(http: HttpRequest) -> Response:
    """The endpoint."""
    server = state_of(http)
    body = await server.read(http, ChatBody)
    model = server.model(body.model)
    body.check(model)
    ids = await asyncio.to_thread(body.ids, model)
    requests = body.requests(model, ids, body.new_tokens, body.logprobs, "messages")
    return await ChatAnswer(server, model, body, [ids], requests).respond(http)


class ChatAnswer(Answer):
    """An answer of the model, or `n` of them."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    body: ChatBody

    async def choices(self) -> list[dict[str, Any]]:
        """All choices, when they have ended."""
        texts, tokens = [""] * self.body.n, self.no_tokens()
        reasons: list[str | None] = [None] * self.body.n
        async for part in self.parts():
            i = part.number
            texts[i] += part.text
            if self.body.logprobs:
                tokens[i] += map(of_event, part.events)
            reasons[i] = FINISH[part.events[-1].finished]
        return [
            {
                "index": i,
                "message": {"role": "assistant", "content": texts[i], "refusal": None},
                "logprobs": self.logprobs(tokens[i]),
                "finish_reason": reasons[i],
            }
            for i in range(self.body.n)
        ]

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The role, parts of the text, and the reason in the end."""
        tokens, begun = self.no_tokens(), set()
        async for part in self.parts():
            i, finish = part.number, FINISH[part.events[-1].finished]
            if i not in begun:
                begun.add(i)
                yield self.chunk(i, delta={"role": "assistant", "content": ""}, logprobs=None)
            if self.body.logprobs:
                tokens[i] += map(of_event, part.events)
            if part.text or (finish and self.body.logprobs):
                yield self.chunk(i, delta={"content": part.text}, logprobs=self.logprobs(tokens[i]))
                tokens[i].clear()
            if finish:
                yield self.chunk(i, finish, delta={}, logprobs=None)

    def no_tokens(self) -> list[list[ScoredToken]]:
        """The tokens of each choice that weren't sent yet: none."""
        return [[] for _ in range(self.body.n)]

    def logprobs(self, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        """Their log-probabilities, if they were asked for."""
        if not self.body.logprobs:
            return None
        as_ids = self.body.return_tokens_as_token_ids
        return chat_logprobs(tokens, self.model.strings, self.body.top_logprobs, as_ids)
