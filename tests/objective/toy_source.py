"""A source of batches that reads the state in one file: the tokens' weights depend on the weights of the
model at each step.

python -m llm_jax.launch experiment=tests/objective/toy_source.py
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm_jax.objective.next_token import NextToken


class Reading:
    """The batches of a loader, each token's weight scaled by a number that follows from the parameters at
    that step.
    """

    def __init__(self, loader):
        self.loader = loader

    def next(self, step, state):
        batch = self.loader.next(step, state)
        scale = 1 + float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(state.parameters))) % 1
        return batch._replace(arrays={**batch.arrays, "weights": batch.arrays["weights"] * scale})

    def close(self):
        self.loader.close()


@dataclass(frozen=True)
class ToySource(NextToken):
    name: str = "toy_source"

    def source(self, loader):
        return Reading(loader)


def experiment():
    from tests.objective.tiny import tiny

    return dataclasses.replace(tiny(), objective=ToySource())
