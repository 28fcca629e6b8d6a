"""What keeping a frozen base in fewer bits costs: the held-out loss at the start of a run, beside that of the
weights as they are."""

from __future__ import annotations

from typing import Any

import jax

from llm_jax.core.format import format_loss
from llm_jax.core.log import no_log
from llm_jax.pretrained.weights import initial_parameters
from llm_jax.processes.collective import run_on_all
from llm_jax.processes.group import Group
from llm_jax.run.prepare import RunPlan
from llm_jax.train.evaluation import HeldOut
from llm_jax.train.state import Frozen, TrainState
from llm_jax.train.step import Metrics, frozen_policies

BATCHES = 8
"""Held-out batches that are scored, at most."""


def loss_difference(plan: RunPlan, state: TrainState, frozen: Frozen, group: Group) -> str:
    """A line for the log about `adapter.base`, for the state that a run starts with. All processes of the
    group call it; both bases are in memory while it runs."""
    e, program, plain = plan.experiment, plan.model, plan.model.plain
    objective = e.objective

    def evaluate(parameters: Any, batch: Any, token_bytes: jax.Array, frozen: Frozen) -> Metrics:
        roles = frozen_policies(plan.frozen, frozen)
        return dict(objective.evaluate(plain.model(parameters), roles, batch, token_bytes))

    examples = objective.examples(plan.corpus, e.train)
    sizes = (examples, plan.corpus.tokenizer, e.train.batch_size, plan.frozen)
    limit = min(BATCHES, e.evaluate.batches or BATCHES)
    whole = run_on_all(group, "whole base", lambda: initial_parameters(e, plain, no_log))
    scores = [
        HeldOut(program, objective, *sizes).scores(state.parameters, limit, frozen=frozen),
        HeldOut(plain, objective, *sizes, evaluate=evaluate).scores(whole, limit, frozen=frozen),
    ]
    name = objective.score.name
    ours, theirs = (float(found[name]) for found in scores if found is not None)
    kept = program.config.parameter_dtype
    return (
        f"base in {e.adapter.base}: {name} {format_loss(ours)} at the start, {format_loss(theirs)} with the "
        f"weights in {kept} ({ours - theirs:+.2g}; of {limit} held-out batches at most)"
    )
