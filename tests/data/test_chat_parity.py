"""Conversations have the tokens that transformers gives them, and the same ones are the model's
(tools/make_chat_fixtures.py).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.chat_encoder import ChatEncoder
from llm_jax.data.chat_template import find_template

HERE = Path(__file__).parent
FIXTURE = json.loads((HERE / "chat_cases.json").read_text())
CASES = [(template, case) for template, cases in FIXTURE["templates"].items() for case in cases]


@functools.cache
def tokenizer():
    return load_tokenizer(HERE / "chat_tokenizer")


def template_of(name: str):
    own = TokenizerConfig(file=str(HERE / "chat_tokenizer"))
    return find_template(str(HERE / "chat_templates" / f"{name}.jinja"), own, "chat.template")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_tokens_and_masks_are_those_of_transformers(name, case):
    theirs = FIXTURE["templates"][name][case]
    (ours,) = ChatEncoder(template_of(name), 10_000).encode(json.dumps(FIXTURE["cases"][case]), tokenizer())
    assert ours.tokens.tolist() == theirs["ids"]
    assert "".join(map(str, ours.weights)) == theirs["mask"]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_an_answer_begins_after_is_that_of_transformers(name, case):
    conversation = FIXTURE["cases"][case]
    made = template_of(name).render(
        conversation["messages"][:-1], tools=conversation.get("tools"), add_generation_prompt=True
    )
    assert made.text == FIXTURE["templates"][name][case]["prompt"]


def test_there_are_twenty_templates_in_which_the_model_says_something():
    assert len(FIXTURE["templates"]) >= 20
    for cases in FIXTURE["templates"].values():
        assert all("1" in case["mask"] and "0" in case["mask"] for case in cases.values())
