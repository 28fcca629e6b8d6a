"""OpenAI's own client, unchanged."""

from __future__ import annotations

import pytest

from tests.serve.serving import TOKEN

openai = pytest.importorskip("openai", reason="the package openai isn't installed")
HELLO = [{"role": "user", "content": "Guten Tag"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(api_key=TOKEN, base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as made:
        yield made


def test_chat_stream_and_usage(client):
    asked = {"model": "chat", "messages": HELLO, "max_tokens": 8, "seed": 1}
    whole = client.chat.completions.create(**asked)
    assert whole.usage.completion_tokens <= 8
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    returned = [*HELLO, whole.choices[0].message, *HELLO]  # its answer as it came, sent back
    assert client.chat.completions.create(**{**asked, "messages": returned, "max_tokens": 1})


def test_completions_and_logprobs(client):
    found = client.completions.create(
        model="text", prompt=["a", "b"], n=2, max_tokens=3, logprobs=2, echo=True
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.choices[0].logprobs.token_logprobs[0] is None
    chat = client.chat.completions.create(
        model="chat", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3
    )
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    assert [model.id for model in client.models.list()] == ["chat", "text"]


def test_errors_are_the_clients_own(client, server):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="chat", messages=HELLO, max_tokens=1000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="not supported yet"):
        client.chat.completions.create(model="chat", messages=HELLO, presence_penalty=1)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_stream_that_is_closed_ends(client, server):
    from tests.serve.serving import until

    stream = client.chat.completions.create(
        model="chat", messages=HELLO[:1], max_tokens=20, stream=True, seed=3
    )
    next(iter(stream))
    stream.close()
    assert until(lambda: not any(server.entries))
