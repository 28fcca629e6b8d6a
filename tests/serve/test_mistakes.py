"""Requests that can't be done are refused, in the form of OpenAI's errors, and name what is wrong."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        (TEXT, {"prompt": "a", "temperatur": 1}, 400, "temperatur", "did you mean 'temperature'?"),
        (TEXT, {"prompt": "a", "temperature": -1}, 400, "temperature", "must be 0 (always the most likely token) or more"),
        (TEXT, {"prompt": "a", "temperature": "1"}, 400, "temperature", "must be a number, and is the string '1'"),
        (TEXT, {"prompt": "a", "max_tokens": True}, 400, "max_tokens", "must be an integer, and is true"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1 (0 with echo"),
        (TEXT, {"prompt": "a", "top_p": 0}, 400, "top_p", "above 0 and at most 1"),
        (TEXT, {"prompt": "a", "n": 17}, 400, "n", "from 1 to 16, the server's slots"),
        (TEXT, {"prompt": "a", "best_of": 3}, 400, "best_of", "must be n (1)"),
        (TEXT, {"prompt": "a", "logprobs": 21}, 400, "logprobs", "from 0 to 20"),
        (TEXT, {"prompt": "a", "model": "chatt"}, 404, "model", "did you mean 'chat'?"),
        (TEXT, {"prompt": []}, 400, "prompt", "not empty"),
        (TEXT, {"prompt": [[]]}, 400, "prompt", "at least one"),
        (TEXT, {"prompt": [352]}, 400, "prompt", "ids from 0 to 351"),
        (TEXT, {"prompt": [[1], "a"]}, 400, "prompt", "must be a string or a list of integers or a list of strings"),
        (TEXT, {"prompt": ["a"] * 81}, 400, "prompt", "more than the 80 that the server takes"),
        (TEXT, {"prompt": "a", "logit_bias": {"5": -100}}, 400, "logit_bias", "not supported yet"),
        (TEXT, {"prompt": "a", "frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported yet"),
        (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix", "not supported"),
        (TEXT, {"prompt": "a", "stop": ["a"] * 3 + list("bcdefghijklmnopqr")}, 400, "stop", "at most 16 strings"),
        (TEXT, {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options", "is for stream=true"),
        (TEXT, {"prompt": "a", "stream": True, "stream_options": {"usage": 1}}, 400, "stream_options.usage", "no such field"),
        (TEXT, {"prompt": "\ud800"}, 400, None, "half a surrogate pair"),
        (CHAT, {}, 400, "messages", "is missing"),
        (CHAT, {"messages": []}, 400, "messages", "messages like"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages[0].role", "must be one of system"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "text": "b"}]}, 400, "messages[0]", "is not read from a message"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]}, 400, "messages[0].content", "reads text only"),
        (CHAT, {"messages": [{"role": "user", "content": "\ufdd2"}]}, 400, "messages[0]", "no text"),
        (CHAT, {"messages": HELLO * 257}, 400, "messages", "at most 256"),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", "not supported yet"),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format", "is supported yet"),
        (CHAT, {"messages": HELLO, "chat_template": "{{ 7 * 7 }}"}, 400, "chat_template", "never a request's"),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", "is for logprobs=true"),
        (CHAT, {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", "differs from"),
        (CHAT, {"messages": HELLO, "model": "text"}, 400, "messages", "a base model only continues a text"),
        ("/tokenize", {}, 400, "prompt", "either prompt or messages"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens", "ids from 0"),
        ("/v1/embeddings", {"input": "a"}, 404, None, "there is no such path"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field_and_what_would_be_right(server, path, body, status, param, message):
    found, answer = server.call(path, body)
    error = answer["error"]
    assert (found, error["param"]) == (status, param)
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if status == 404 and param:
        assert error["code"] == "model_not_found"


def test_what_asks_for_nothing_is_accepted(server):
    body = {
        "messages": HELLO, "max_tokens": 2, "logit_bias": {}, "frequency_penalty": 0, "tools": None,
        "response_format": {"type": "text"}, "user": "me", "stop": None, "metadata": {"a": "b"}, "stream": False,
    }  # fmt: skip
    server.ok(CHAT, body)
    returned = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}
    server.ok(CHAT, {**body, "messages": [*HELLO, returned, *HELLO]})
    assert server.ok(TEXT, {"prompt": "a", "stop": "", "max_tokens": 2})["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize("asked", [{}, {"max_tokens": 40}, {"max_tokens": 10**9}])
def test_a_context_that_is_too_long_has_both_numbers_and_compiles_nothing(server, models, asked):
    compiled = {name: set(model.engine.programs.compiled) for name, model in models.items()}
    messages = [{"role": "user", "content": "a" * 90}] if not asked else HELLO * 3
    begun = time.perf_counter()
    status, answer = server.call(CHAT, {"messages": messages, **asked})
    seconds = time.perf_counter() - begun
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    ids = server.ok("/tokenize", {"messages": messages})["count"]
    new = asked.get("max_tokens", 1)
    assert error["message"].startswith(
        f"This model's maximum context length is 64 tokens. However, you requested {ids + new} tokens "
        f"({ids} in the messages, {new} in the completion)."
    )
    assert {name: set(model.engine.programs.compiled) for name, model in models.items()} == compiled
    assert seconds < 5  # 50 ms on an idle machine


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"prompt": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b"1" * 5000],
)
def test_a_body_that_is_no_object_is_400(server, content):
    status, answer = server.call(TEXT, content)
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large_is_413(server):
    assert server.call(TEXT, b" " * (4 * 2**20 + 1))[0] == 413
    parts = (b" " * 2**20 for _ in range(5))  # in chunks, without a Content-Length
    connection = server.connect()
    headers = {"Authorization": "Bearer a-token-of-the-tests"}
    connection.request("POST", TEXT, parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_other_methods_are_405(server):
    status, answer = server.call(TEXT)
    assert (status, answer["error"]["type"]) == (405, "invalid_request_error")


def test_a_full_queue_is_429_with_the_time_to_wait(server):
    hold = [server.send(TEXT, {"prompt": ["a"] * 40, "max_tokens": 60, "stream": True}) for _ in range(2)]
    try:
        response = server.send(TEXT, {"prompt": ["a"] * 40, "max_tokens": 60})
        error = json.loads(response.read())["error"]
        assert (response.status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 60
    finally:
        for one in hold:
            one.connection.close()


def value_of(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    kinds = 6 if depth > 2 else 9
    match chance.randrange(kinds):
        case 0:
            return None
        case 1:
            return chance.choice([True, False])
        case 2:
            return chance.choice([0, 1, -1, 2, 2**31, 2**64, -(2**63), 10**400])
        case 3:
            return chance.choice([0.0, 0.5, 1.5, -0.1, 1e-300, 1e308])
        case 4 | 5:
            return chance.choice(["", "a", "ü😀", "\x00", "\ud83d", "chat", "<|im_start|>", "x" * 70])
        case 6:
            return [value_of(chance, depth + 1) for _ in range(chance.randrange(4))]
        case 7:
            return [
                {
                    "role": chance.choice(["user", "system", "assistant", "", None]),
                    "content": value_of(chance, 2),
                }
            ]
    return {
        chance.choice(["include_usage", "type", "a", "role"]): value_of(chance, depth + 1) for _ in range(2)
    }


def test_bodies_at_random_are_never_a_fault_of_the_server(server):
    from llm_jax.serve.bodies import ChatBody, CompletionBody
    from llm_jax.serve.fields import NOT_HERE

    chance = random.Random(1)
    statuses: dict[int, int] = {}
    for i in range(150):
        path, kind = ((CHAT, ChatBody), (TEXT, CompletionBody))[i % 2]
        fields = [*kind.__dataclass_fields__, *NOT_HERE, "user", "x"]
        body = {chance.choice(fields): value_of(chance) for _ in range(chance.randrange(4))}
        body = {
            "max_tokens": 2,
            "messages" if path == CHAT else "prompt": HELLO if path == CHAT else "a",
            **body,
        }
        response = server.send(path, body)
        content = response.read()
        response.connection.close()
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status in (200, 400, 404, 429), (body, content)
        if response.status != 200:
            assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    assert min(statuses[200], statuses[400]) > 10
