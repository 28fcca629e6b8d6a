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
from llm_jax.train.config import EvaluateConfig, TrainConfig
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
    e, folder = plan.experiment, plan.experiment.data.cache_path()
    steps, held_out = e.train.steps + e.train.rollback.most_skipped, held_out_rows(e.evaluate, e.train)
    for role, model in plan.precomputed.items():
        which = identity(plan, model, identities[role])
        files = plan.corpus.token_numbers(which, folder, steps=steps, held_out_rows=held_out)
        missing = [file.missing() for file in files]
        theirs = group.exchange(f"log-probabilities of {role}", missing)
        if any(other != missing for other in theirs):  # hosts have different caches
            missing = [list(range(len(file.needed))) for file in files]
        if any(missing):
            begun = time.monotonic()
            compute(plan, role, model, list(zip(files, missing, strict=True)), group, log)
            seconds = clock(time.monotonic() - begun)
            log(f"{role}: log-probabilities of the data computed in {seconds}, kept in {folder}")
        else:
            log(f"{role}: log-probabilities of the data (cached)")
        for file in files:
            file.attach(f"{role}_logp")


def held_out_rows(evaluate: EvaluateConfig, train: TrainConfig) -> int | None:
    """The number of held-out rows that a run evaluates on; None: all."""
    limits = [evaluate.final_batches, *([evaluate.batches] if evaluate.every else [])]
    batches = [limit for limit in limits if limit is not None]
    return max(batches) * train.batch_size if len(batches) == len(limits) else None


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
    files: list[tuple[TokenNumbers, list[int]]],
    group: Group,
    log: Callable[[str], None],
) -> None:
    """Computes the log-probabilities that a model gives to the rows that files lack, and adds them."""
    e = plan.experiment
    group.mark(role)
    parameters = run_on_all(group, f"weights of {role}", lambda: read_role(e, role, model, log))
    score = scorer(model, parameters, getattr(e.objective, "chunk", CHUNK))
    for file, missing in files:

        def run(file: TokenNumbers = file, missing: list[int] = missing) -> np.ndarray:
            numbers = file.compute(missing, score, e.train.batch_size)
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
    program = model.jit(logprobs, out_shardings=whole)

    def score(batch: dict[str, np.ndarray]) -> np.ndarray:
        with jax.set_mesh(model.place.mesh):
            return np.asarray(program(parameters, on_devices(batch, Objective(), model.place)))

    return score


def check_finite(numbers: np.ndarray, role: str) -> None:
    """Raises UserError where a model gives log-probabilities that are not finite."""
    if bad := int(np.isinf(numbers).sum()):
        raise UserError(
            f"objective.{role}: gives {bad:,} tokens of the data a log-probability that is not finite. Use "
            "another model, or model.compute_dtype=float32"
        )
