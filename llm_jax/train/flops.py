"""Training FLOPs of a step where not everything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import MATRIX_SIDES, Dims
from llm_jax.objective.protocol import Objective
from llm_jax.train.state import TrainModel


def flops_per_token(
    objective: Objective, program: TrainModel, sequence_length: int, frozen: Mapping[str, ModelConfig]
) -> float:
    """FLOPs a token: the objective's count, but 4 in place of 6 for each weight of a product that is not
    trained (the forward pass and the gradient of its input), and 6 for each number of an adapter's factors.

    frozen: the objective's frozen models, by role. Of experts those count that a token is sent to. DoRA's
    lengths, once for each step and not for each token, are not counted.
    """
    whole = objective.flops_per_token(program.config, sequence_length, frozen)
    head = "embedding" if program.config.tied_embeddings else "head"
    for name, w in program.weights.items():
        if name not in program.trained and (w.dims in MATRIX_SIDES or name == head):
            whole -= 2 * used_by_a_token(w.get_value().shape, w.dims, program.config)
    for name in program.adapted.trained:
        w = program.adapted.arrays[name]
        if not name.endswith("magnitude"):
            whole += 6 * used_by_a_token(w.get_value().shape, w.dims, program.config)
    return whole


def used_by_a_token(shape: tuple[int, ...], dims: Dims, model: ModelConfig) -> float:
    """The numbers of a weight that one token is multiplied with."""
    share = model.moe.top_k / model.moe.experts if "experts" in dims else 1
    return math.prod(shape) * share
