"""Log-probabilities that a model gives to the data, computed before the first step and kept beside the
tokens."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.format import clock
from llm_jax.data import cache
from llm_jax.data.token_numbers import TokenNumbers
from llm_jax.objective.logprobs import CHUNK, hidden_states, token_logprobs
from llm_jax.objective.protocol import Objective
from llm_jax.processes.collective import run_on_all
from llm_jax.processes.group import Group
from llm_jax.run.frozen import read_role
from llm_jax.run.prepare import RunPlan
from llm_jax.train.compile import program_options
from llm_jax.train.loader import on_devices
from llm_jax.train.state import TrainModel

Score = Callable[[dict[str, np.ndarray]], np.ndarray]
"""score(batch) -> float32 [B, T]: a number for each target, on every process."""


def attach_precomputed(
    plan: RunPlan, identities: Mapping[str, Mapping[str, Any]], group: Group, log: Callable[[str], None]
) -> None:
    """Gives the batches of a run the log-probabilities of the models in `Objective.precomputed`, as arrays
    ROLE_logp.

    What the cache lacks is computed first, by all processes together. identities: `frozen_identities`.
    """
    folder = plan.experiment.data.cache_path()
    for role, model in plan.precomputed.items():
        files = plan.corpus.token_numbers(identity(plan, model, identities[role]), folder)
        there = group.exchange(f"log-probabilities of {role}", [file.exist for file in files])
        missing = [file for i, file in enumerate(files) if not all(mine[i] for mine in there)]
        if missing:
            begun = time.monotonic()
            compute(plan, role, model, missing, group, log)
            seconds = clock(time.monotonic() - begun)
            log(f"{role}: log-probabilities of the data computed in {seconds}, kept in {folder}")
        else:
            log(f"{role}: log-probabilities of the data (cached)")
        for file in files:
            file.attach(f"{role}_logp")


def identity(plan: RunPlan, model: TrainModel, weights: Mapping[str, Any]) -> str:
    """Identifies a model and its weights in the cache."""
    seed = None if weights["path"] else plan.experiment.train.seed
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    adapter = (
        json.loads(json.dumps(dataclasses.asdict(model.adapted.config))) if model.adapted.changes else None
    )
    return cache.fingerprint("log-probabilities", weights["sha256"], seed, config, adapter)


def compute(
    plan: RunPlan,
    role: str,
    model: TrainModel,
    files: list[TokenNumbers],
    group: Group,
    log: Callable[[str], None],
) -> None:
    """Computes the log-probabilities that a model gives to the documents of some files, and writes these."""
    e = plan.experiment
    group.mark(role)
    parameters = run_on_all(group, f"weights of {role}", lambda: read_role(e, role, model, log))
    score = scorer(model, parameters, getattr(e.objective, "chunk", CHUNK))
    for file in files:

        def run(file: TokenNumbers = file) -> np.ndarray:
            numbers = file.compute(score, e.train.batch_size)
            check_finite(numbers, role)
            return numbers

        numbers = run_on_all(group, f"scores of {role}", run)
        # Several processes of a host share its cache.
        mine = group.task.local_rank == 0
        run_on_all(group, f"saved scores of {role}", functools.partial(file.save, numbers), runs=mine)


def scorer(model: TrainModel, parameters: Any, chunk: int) -> Score:
    """The function that gives the log-probabilities of a batch's targets, in nats."""

    def logprobs(parameters: Any, batch: dict[str, jax.Array]) -> jax.Array:
        policy = model.model(parameters)
        return token_logprobs(policy, hidden_states(policy, batch), batch["targets"], chunk=chunk)

    whole = jax.sharding.NamedSharding(model.place.mesh, jax.sharding.PartitionSpec())
    program = jax.jit(logprobs, out_shardings=whole, compiler_options=program_options(model) or None)

    def score(batch: dict[str, np.ndarray]) -> np.ndarray:
        with jax.set_mesh(model.place.mesh):
            return np.asarray(program(parameters, on_devices(batch, Objective(), model.place)))

    return score


def check_finite(numbers: np.ndarray, role: str) -> None:
    """Raises UserError where a model gives log-probabilities that are not finite."""
    if bad := int((~np.isfinite(numbers)).sum()):
        raise UserError(
            f"objective.{role}: gives {bad:,} tokens of the data a log-probability that is not finite. Use "
            "another model, or model.compute_dtype=float32"
        )
