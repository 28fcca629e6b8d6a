"""Greedy continuations of open models equal those of transformers' `generate`, which decodes with its own
cache (fixtures)."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request
from llm_jax.pretrained.model import open_model
from tests.huggingface.expected import CASES, FIXTURES

QUICK = ("gemma3", "deepseek_v3", "gpt_neox")


class Ids:
    """A tokenizer without text and without EOS: no text ends early."""

    bos_id, eos_id, eos_ids = 0, -1, (-1,)

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def decode(self, ids) -> str:
        return ""


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_greedy_continuations_are_those_of_transformers(name):
    e = np.load(FIXTURES / name / "expected.npz")
    model = open_model(FIXTURES / name, dtype="float32")
    tokenizer = Ids(model.config.vocab)
    new = e["left_greedy_new_tokens"]
    prompts = [
        tuple(row[mask > 0].tolist()) for row, mask in zip(e["left_input_ids"], e["left_mask"], strict=True)
    ]
    engine = Engine(
        model.program,
        model.parameters,
        tokenizer,
        name,
        slots=2,
        max_tokens=max(map(len, prompts)) + new.shape[1],
    )
    results = engine.generate(
        [Request(ids=prompt, max_tokens=new.shape[1], temperature=0) for prompt in prompts]
    )
    assert [result.tokens for result in results] == new.tolist()
