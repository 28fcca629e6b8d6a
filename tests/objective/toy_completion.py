"""Per-token weights in one file: only what follows the first space of a document is trained; whole documents,
none cut.

python -m llm_jax.launch experiment=tests/objective/toy_completion.py
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from llm_jax.data.encoder import Encoded
from llm_jax.objective.next_token import NextToken


@dataclass(frozen=True)
class AfterTheFirstWord:
    fingerprint: str = "after the first word, at most 30 tokens"

    def encode(self, text, tokenizer):
        head, _, tail = text.partition(" ")
        prompt = [tokenizer.bos_id, *tokenizer.encode(head)][:10]
        completion = [*tokenizer.encode(" " + tail)[:20], tokenizer.eos_id]
        weights = np.repeat([0, 1], [len(prompt), len(completion)]).astype(np.uint8)
        return [Encoded(np.array(prompt + completion), weights)]


@dataclass(frozen=True)
class ToyCompletion(NextToken):
    name: str = "toy_completion"
    rows = "whole"

    def encoder(self, settings):
        return AfterTheFirstWord()


def experiment():
    from tests.objective.tiny import tiny

    return dataclasses.replace(tiny(), objective=ToyCompletion())
