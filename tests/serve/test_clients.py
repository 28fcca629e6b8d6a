"""Clients of OpenAI's interface, unchanged; what isn't installed is skipped."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.serve.serving import TOKEN, until

HELLO = [{"role": "user", "content": "Guten Tag"}]


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai", reason="the package openai isn't installed")


@pytest.fixture(scope="module")
def client(openai, server):
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


def test_errors_are_the_clients_own(client, openai):
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
    stream = client.chat.completions.create(
        model="chat", messages=HELLO[:1], max_tokens=20, stream=True, seed=3
    )
    next(iter(stream))
    stream.close()
    assert until(lambda: not any(server.entries))


def test_curl(server):
    if not shutil.which("curl"):
        pytest.skip("curl isn't installed")
    url, key = f"http://127.0.0.1:{server.port}/v1/completions", f"Authorization: Bearer {TOKEN}"
    body = '{"model": "text", "prompt": "a", "max_tokens": 2, "stream": true}'
    done = subprocess.run(
        ["curl", "-sN", url, "-H", key, "-d", body], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("data: {")
    assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_langchain(server):
    chat = pytest.importorskip("langchain_openai", reason="the package langchain-openai isn't installed")
    model = chat.ChatOpenAI(
        model="chat",
        api_key=TOKEN,
        base_url=f"http://127.0.0.1:{server.port}/v1",
        max_tokens=6,
        seed=1,
        max_retries=0,
    )
    whole = model.invoke("Guten Tag")
    assert "".join(part.content for part in model.stream("Guten Tag")) == whole.content
    assert whole.usage_metadata["output_tokens"] <= 6


@pytest.mark.slow
def test_litellm(server, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it fetches prices otherwise
    litellm = pytest.importorskip("litellm", reason="the package litellm isn't installed")
    asked = {
        "model": "openai/chat", "messages": HELLO, "max_tokens": 6, "seed": 1, "api_key": TOKEN,
        "api_base": f"http://127.0.0.1:{server.port}/v1", "num_retries": 0,
    }  # fmt: skip
    whole = litellm.completion(**asked).choices[0].message.content
    parts = litellm.completion(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole


@pytest.mark.slow
def test_llm(server, tmp_path, monkeypatch):
    pytest.importorskip("llm", reason="the package llm isn't installed")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: chat\n  api_base: http://127.0.0.1:{server.port}/v1\n  api_key_name: ours\n"
    )
    (tmp_path / "keys.json").write_text(f'{{"ours": "{TOKEN}"}}')
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "ours",
        "Guten Tag",
        "-o",
        "max_tokens",
        "6",
        "-o",
        "seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    body = {"model": "chat", "messages": HELLO, "max_tokens": 6, "seed": 1}
    assert done.stdout.rstrip("\n") == server.ok("/v1/chat/completions", body)["choices"][0]["message"][
        "content"
    ].rstrip("\n")


@pytest.mark.slow
def test_lm_evaluation_harness_has_the_scores_of_the_scorer(server, models, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    for name in ("lm_eval", "tenacity", "tiktoken", "aiohttp"):
        pytest.importorskip(name, reason="the package lm-eval[api] isn't installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from llm_jax.evaluate.scorer import ScoreRequest

    base = f"http://127.0.0.1:{server.port}/v1/completions"
    client = LocalCompletionsAPI(base_url=base, model="chat", auth_token=TOKEN, max_length=64)
    pairs = [("def main(", "argv)"), ("x", " = 1"), ("Größe", " 😀"), ("", "The whole")]
    found = client.loglikelihood(
        [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
            for i, pair in enumerate(pairs)
        ]
    )
    model = models["chat"]  # the first: it names none where it asks for tokens
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        before = model.tokenizer.encode(context) or [client.prefix_token_id]
        whole = model.tokenizer.encode(context + continuation)
        after = whole[len(before) :] if context else whole
        (scored,) = model.scorer.score([ScoreRequest(tuple(before), tuple(after))])
        assert abs(float(scored.logprobs.sum(dtype=float)) - logprob) < 1e-6
        assert bool(scored.greedy.all()) == greedy
