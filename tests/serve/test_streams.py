"""What comes over HTTP is what the engine makes by itself: streamed or not, alone or beside others."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.generate.request import Request, Result
from tests.serve.cases import TEXTS
from tests.serve.serving import models_of, running

FINISH = {"eos": "stop", "stop": "stop", "max_tokens": "length", "positions": "length"}


def body_of(model: str, request: Request) -> dict[str, Any]:
    """The same request over HTTP."""
    return {
        "model": model, "prompt": list(request.ids), "max_tokens": request.max_tokens, "seed": request.seed,
        "temperature": request.temperature, "top_k": request.top_k, "stop": list(request.stop),
    }  # fmt: skip


def check_usage(usage: dict[str, int], request: Request, result: Result) -> None:
    """Tokens are counted as the engine counts them."""
    counts = len(request.ids), len(result.tokens)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == counts
    assert usage["total_tokens"] == sum(counts)


def test_a_stream_joins_to_the_whole_answer_and_to_what_the_engine_makes(server, cases):
    for name, request, result in cases:
        whole = server.ok("/v1/completions", body_of(name, request))
        (choice,) = whole["choices"]
        assert (choice["text"], choice["finish_reason"]) == (result.text, FINISH[result.finished])
        check_usage(whole["usage"], request, result)
        body = {**body_of(name, request), "stream_options": {"include_usage": True}}
        *chunks, last = server.stream("/v1/completions", body)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == result.text
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"][0]["finish_reason"] == FINISH[result.finished]
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == []
        check_usage(last["usage"], request, result)
    reasons = {result.finished for _, _, result in cases}
    assert {"stop", "max_tokens"} <= reasons
    assert any("\ufffd" in result.text for _, _, result in cases)  # bytes that are no character
    assert any(len(result.text.encode()) > len(result.text) for _, _, result in cases)


def test_the_same_bits_alone_and_beside_fifteen_others(server, cases):
    def ask(case: tuple[str, Request, Result]) -> list[float]:
        body = {**body_of(*case[:2]), "logprobs": 3}
        return server.ok("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]

    def steps() -> float:
        lines = server.send("/metrics").read().decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("llm_jax_step_seconds_count"))

    before = steps()
    alone = [ask(case) for case in cases[:16]]
    between = steps()
    with ThreadPoolExecutor(16) as threads:
        beside = list(threads.map(ask, cases[:16]))
    assert alone == beside
    assert steps() - between < between - before  # they shared steps


def test_no_request_waits_for_a_compilation(server, models):
    programs = models["text"].engine.programs
    compiled = set(programs.compiled)
    assert {size for name, size in compiled if name == "prefill"} == {
        f"1 x {n} positions" for n in (16, 32, 64)
    }
    for length in (1, 16, 17, 40, 60):
        body = {"model": "text", "prompt": [5] * length, "max_tokens": 4, "logprobs": 1}
        server.ok("/v1/completions", body)
    assert set(programs.compiled) == compiled


def test_a_model_that_outputs_nan_is_not_served(opened):
    parameters = jax.tree.map(lambda w: np.full_like(w, np.nan), opened["chat"].parameters)
    model = dataclasses.replace(opened["chat"], parameters=parameters)
    with pytest.raises(UserError, match="outputs NaN"):
        list(models_of({"chat": model})["chat"].engine.warm_up())


@pytest.mark.slow
def test_two_hundred_prompts_streamed_or_not_are_the_engines_own(opened):
    models = models_of(opened)
    texts = [f"{text} {i} {extra}" for i, text in enumerate(TEXTS * 4) for extra in ("", "ß", "😀")]
    cases = []
    for name, model in models.items():
        for i, text in enumerate(texts[:100]):
            ids = tuple(model.tokenizer.encode(text))[:40]
            stop = (("e",), ("a ", "ü"), (), ("\ufffd",), ("<|im_end|>",), ("no", "never"))[i % 6]
            request = Request(ids=ids, max_tokens=20, seed=i, temperature=i % 3 / 2, stop=stop)
            cases.append((name, request, model.engine.generate([request])[0]))
    assert len(cases) >= 190
    for server in running(lambda log: models):
        for name, request, result in cases:
            whole = server.ok("/v1/completions", body_of(name, request))["choices"][0]
            chunks = server.stream("/v1/completions", body_of(name, request))
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"] == result.text
