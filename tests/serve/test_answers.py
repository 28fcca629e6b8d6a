"""The forms of answers, field by field, as OpenAI's clients read them."""

from __future__ import annotations

import json

import jax
import numpy as np

from llm_jax.evaluate.scorer import ScoreRequest
from llm_jax.generate.chat import in_template
from llm_jax.generate.request import Request

HELLO = [{"role": "user", "content": "Guten Tag"}]


def test_a_chat_is_answered_in_the_models_template(server, models):
    body = {"model": "chat", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    answer = server.ok("/v1/chat/completions", body)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["logprobs"] is None
    (request,) = in_template([Request(messages=tuple(HELLO))], models["chat"].opened)
    assert answer["usage"]["prompt_tokens"] == len(request.ids)
    ids = server.ok("/tokenize", {"model": "chat", "messages": HELLO})["tokens"]
    assert tuple(ids) == request.ids
    same = {"model": "chat", "prompt": list(request.ids), "max_tokens": 6, "temperature": 0}
    assert server.ok("/v1/completions", same)["choices"][0]["text"] == choice["message"]["content"]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Guten "}, {"type": "text", "text": "Tag"}]}
    ]
    again = server.ok("/v1/chat/completions", {**body, "messages": parts, "max_completion_tokens": 6})
    assert again["choices"] == answer["choices"]


def test_chunks_of_a_chat_have_the_form_that_clients_read(server):
    body = {"model": "chat", "messages": HELLO, "max_tokens": 8, "seed": 4, "n": 2}
    whole = server.ok("/v1/chat/completions", body)
    chunks = server.stream("/v1/chat/completions", body)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    for i in (0, 1):
        first, *middle, last = (c["choices"][0] for c in chunks if c["choices"][0]["index"] == i)
        assert (first["delta"], first["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
        assert all(set(c["delta"]) == {"content"} and c["finish_reason"] is None for c in middle)
        assert all(c["delta"]["content"] for c in middle)  # no empty ones
        assert (last["delta"], last["finish_reason"]) == ({}, whole["choices"][i]["finish_reason"])
        text = "".join(c["delta"]["content"] for c in middle)
        assert text == whole["choices"][i]["message"]["content"]


def test_choices_have_seeds_that_count_up(server):
    body = {"model": "text", "prompt": ["a", "b"], "max_tokens": 5, "seed": 7, "n": 2}
    choices = server.ok("/v1/completions", body)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    for i, (prompt, seed) in enumerate([("a", 7), ("a", 8), ("b", 7), ("b", 8)]):
        one = server.ok("/v1/completions", {**body, "prompt": prompt, "n": 1, "seed": seed})
        assert one["choices"][0]["text"] == choices[i]["text"]
    drawn = {
        server.ok("/v1/completions", {"prompt": "a", "max_tokens": 8})["choices"][0]["text"] for _ in range(3)
    }
    assert len(drawn) > 1  # without a seed one is drawn


def test_both_shapes_of_logprobs_have_the_same_numbers(server, models):
    ids = models["chat"].tokenizer.encode("Tag")
    body = {"model": "chat", "prompt": ids, "max_tokens": 6, "seed": 2, "logprobs": 2}
    completion = server.ok("/v1/completions", body)["choices"][0]
    found = completion["logprobs"]
    assert len({len(found[key]) for key in found}) == 1
    assert all(len(top) in (2, 3) for top in found["top_logprobs"])
    assert all(
        top[token] == logprob
        for token, logprob, top in zip(
            found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
        )
    )
    assert found["text_offset"][0] == 0
    named = server.ok("/v1/completions", {**body, "return_tokens_as_token_ids": True})["choices"][0][
        "logprobs"
    ]
    assert all(token.startswith("token_id:") for token in named["tokens"])
    assert named["token_logprobs"] == found["token_logprobs"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in server.stream("/v1/completions", body)]
    for key in found:
        assert [value for part in streamed for value in part[key]] == found[key], key

    chat = {"model": "chat", "messages": HELLO, "max_tokens": 6, "seed": 2, "logprobs": True}
    content = server.ok("/v1/chat/completions", chat)["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in content)  # logprobs alone works
    content = server.ok("/v1/chat/completions", {**chat, "top_logprobs": 3})["choices"][0]["logprobs"][
        "content"
    ]
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        if not entry["token"].startswith("bytes:"):
            assert bytes(entry["bytes"]).decode() == entry["token"]
    chunks = server.stream("/v1/chat/completions", {**chat, "top_logprobs": 3})
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for part in parts if part for entry in part["content"]] == content


def test_echo_scores_the_prompt_with_the_scorer_of_the_evaluation(server, models):
    """As lm-evaluation-harness asks for it: ids, max_tokens=1, logprobs=1."""
    model = models["text"]
    prompts = [[model.tokenizer.bos_id, *model.tokenizer.encode(text)] for text in ("def main", "x = 😀")]
    body = {
        "model": "text",
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    choices = server.ok("/v1/completions", body)["choices"]
    scored = model.scorer.score([ScoreRequest((ids[0],), tuple(ids[1:])) for ids in prompts])
    for ids, choice, own in zip(prompts, choices, scored, strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(ids) + 1
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        assert found["token_logprobs"][1:-1] == own.logprobs.tolist()
        greedy = [
            logprob == max(top.values())
            for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
        ]
        assert greedy[:-1] == own.greedy.tolist()
        assert found["tokens"][-1] in found["top_logprobs"][-1]
        assert choice["text"].startswith(model.tokenizer.decode(ids))
    only = server.ok("/v1/completions", {**body, "max_tokens": 0})
    assert only["choices"][1]["text"] == model.tokenizer.decode(prompts[1])
    assert only["choices"][1]["logprobs"]["token_logprobs"] == choices[1]["logprobs"]["token_logprobs"][:-1]
    assert only["usage"]["completion_tokens"] == 0
    parts = server.stream("/v1/completions", body)
    assert (
        "".join(c["choices"][0]["text"] for c in parts if c["choices"][0]["index"] == 0) == choices[0]["text"]
    )


def test_logprobs_of_the_echo_are_those_of_the_forward_pass(server, opened):
    model = opened["text"]
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("def é")]
    with jax.set_mesh(model.place.mesh):
        run = jax.jit(lambda parameters, tokens: model.program.model(parameters)(tokens))
        logits = run(model.parameters, np.array([ids], np.int32))
    wanted = np.asarray(jax.nn.log_softmax(logits[0], -1))[np.arange(len(ids) - 1), ids[1:]]
    body = {"model": "text", "prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0}
    found = server.ok("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    assert np.allclose(found[1:], wanted, atol=1e-4)


def test_models_and_tokens(server, models):
    listed = server.ok("/v1/models")
    assert [model["id"] for model in listed["data"]] == ["chat", "text"]
    assert server.ok("/v1/models/text")["max_model_len"] == models["text"].max_tokens
    text = "Größe 😀 <|im_end|>"
    found = server.ok("/tokenize", {"model": "chat", "prompt": text, "return_token_strs": True})
    own = models["chat"].tokenizer
    assert found["tokens"] == [own.bos_id, *own.encode(text)]
    assert found["count"] == len(found["token_strs"]) == len(found["tokens"])
    assert own.control_tokens["<|im_end|>"] not in found["tokens"]  # typed, it stays text
    plain = server.ok("/tokenize", {"model": "chat", "prompt": text, "add_special_tokens": False})["tokens"]
    assert plain == found["tokens"][1:]
    assert server.ok("/detokenize", {"model": "chat", "tokens": plain})["prompt"] == own.decode(plain)
    info = server.ok("/tokenizer_info?model=chat")
    named = server.ok(
        "/tokenize", {"model": "chat", "prompt": info["eos_token"], "add_special_tokens": False}
    )
    assert named["tokens"] == [own.eos_ids[0]]  # how lm-evaluation-harness learns its id
    assert "im_start" in info["chat_template"]


def test_health_and_metrics(server):
    assert server.ok("/health") == {"status": "ok"}
    assert server.ok("/ready") == {"status": "ready"}
    text = server.send("/metrics").read().decode()
    for line in (
        'llm_jax_requests_total{path="/v1/completions",status="200"}',
        'llm_jax_slots{model="chat"} 16.0',
    ):
        assert line in text
    assert json.dumps(HELLO) not in "".join(server.lines)
    assert "Guten" not in "".join(server.lines)  # prompts aren't logged
