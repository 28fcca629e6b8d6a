"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: lm-evaluation-harness encodes with them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llm_jax.serve.bodies import message_ids, require, text_ids
from llm_jax.serve.errors import ApiError
from llm_jax.serve.models import ServedModel
from llm_jax.serve.responses import json_response
from llm_jax.serve.state import state_of


@dataclass(frozen=True, kw_only=True)
class TokenizeBody:
    """The body of POST /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    """A conversation, in place of `prompt`: its tokens up to where the answer begins."""
    add_special_tokens: bool = True
    """BOS before the text, as /v1/completions puts it there."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    def ids(self, model: ServedModel) -> list[int]:
        """The token ids. A text that is just the name of a control token is that token. Raises ApiError."""
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "prompt: give either prompt or messages.", param="prompt")
        if not self.add_generation_prompt:
            raise ApiError(
                400, "add_generation_prompt: only true is supported.", param="add_generation_prompt"
            )
        if self.messages is not None:
            return message_ids(model, self.messages)
        control = model.tokenizer.control_tokens.get(self.prompt or "")
        if control is not None and not self.add_special_tokens:
            return [control]
        ids = text_ids(model, self.prompt or "")
        return ids if self.add_special_tokens else ids[1:]


@dataclass(frozen=True, kw_only=True)
class DetokenizeBody:
    """The body of POST /detokenize."""

    tokens: tuple[int, ...]
    model: str | None = None


async def tokenize(http: HttpRequest) -> Response:
    """POST /tokenize."""
    server = state_of(http)
    body = await server.read(http, TokenizeBody)
    model = server.model(body.model)
    ids = await asyncio.to_thread(body.ids, model)
    return json_response(
        {
            "count": len(ids),
            "max_model_len": model.max_tokens,
            "tokens": ids,
            "token_strs": [model.strings.text(i) for i in ids] if body.return_token_strs else None,
        }
    )


async def detokenize(http: HttpRequest) -> Response:
    """POST /detokenize."""
    server = state_of(http)
    body = await server.read(http, DetokenizeBody)
    model = server.model(body.model)
    for token in body.tokens:
        require(0 <= token < model.vocab, "tokens", token, f"ids from 0 to {model.vocab - 1}")
    text = await asyncio.to_thread(model.tokenizer.decode, body.tokens)
    return json_response({"prompt": text})


async def tokenizer_info(http: HttpRequest) -> Response:
    """GET /tokenizer_info?model=NAME."""
    model = state_of(http).model(http.query_params.get("model"))
    tokenizer = model.opened.tokenizer_if_any
    if tokenizer is None:
        raise ApiError(400, model.opened.missing_tokenizer, param="model")
    names = {i: name for name, i in tokenizer.control_tokens.items()}
    return json_response(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": names.get(tokenizer.bos_id),
            "eos_token": names.get(tokenizer.eos_id),
            "pad_token": names.get(tokenizer.pad_id),
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_ids": list(tokenizer.eos_ids),
            "add_bos_token": tokenizer.puts_bos,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": model.max_tokens,
            "chat_template": model.template.source if model.template else None,
        }
    )
