"""Requests with what the engine itself makes of them, alone: emoji, umlauts, bytes, stop strings."""

from __future__ import annotations

import dataclasses

from llm_jax.generate.request import Request, Result
from llm_jax.serve.models import ServedModel

TEXTS = (
    "", "plain", "😀👩‍👩‍👧", "Übergrößenträger", "日本 é e\u0301", "a\n\tb  c", "<|im_end|>", "\ufffd",
)  # fmt: skip


def made_cases(models: dict[str, ServedModel]) -> list[tuple[str, Request, Result]]:
    """Every text with and without a stop string that comes in the middle of its continuation, and ids that
    end within a character."""
    cases = []
    for name, model in models.items():
        requests = [
            Request(
                ids=tuple(Request(text).prompt_ids(model.tokenizer)), max_tokens=14, seed=i,
                temperature=(0, 1, 1.3)[i % 3], top_k=(0, 40)[i % 2],
            )
            for i, text in enumerate(TEXTS)
        ]  # fmt: skip
        half = model.tokenizer.encode("😀")[:-2]
        requests.append(Request(ids=(model.tokenizer.bos_id, *half), max_tokens=14, seed=3))
        free = model.engine.generate(requests)
        middle = [result.text[len(result.text) // 2 :][:2] for result in free]
        requests += [
            dataclasses.replace(request, stop=(stop, "never"))
            for request, stop in zip(requests, middle, strict=True)
            if stop
        ]
        cases += [(name, *pair) for pair in zip(requests, model.engine.generate(requests), strict=True)]
    return cases
