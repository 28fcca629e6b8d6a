"""One step: gradients of the objective, clipped, into an update; a bad one is skipped on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.model.router import load_metrics
from llm_jax.objective.next_token import Objective
from llm_jax.train.state import TrainModel, TrainState

Metrics = dict[str, jax.Array]


def make_step(
    program: TrainModel, objective: Objective, schedule: Callable[[jax.Array], jax.Array], clip_norm: float
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """step(state, batch) -> (state, metrics), to be jitted with the state donated.

    The batch has a leading dim of microbatches, [A, B / A, T]: their gradients are summed in a scan. Losses are sums
    and are divided by the sum of all weights, so the mean is the same however the batch is cut.
    """

    def loss_sum(masters: Any, parameters: Any, microbatch: Any):
        total, weight, metrics = objective(program.model(parameters, masters), microbatch)
        return total, (weight, metrics)

    def gradients(masters: Any, parameters: Any, batch: Any):
        """Sums over the microbatches: (loss, weight, metrics), gradients in float32 where the moments are."""
        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)

        def of(microbatch: Any):
            (total, (weight, metrics)), grads = value_and_grad(masters, parameters, microbatch)
            return (total, weight, metrics), grads

        first = of(jax.tree.map(lambda x: x[0], batch))
        if jax.tree.leaves(batch)[0].shape[0] == 1:
            return first
        rest = jax.tree.map(lambda x: x[1:], batch)
        return jax.lax.scan(lambda sums, microbatch: (jax.tree.map(jnp.add, sums, of(microbatch)), None), first, rest)[0]

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        masters = program.master_params(state.parameters)
        (total, weight, sums), grads = gradients(masters, state.parameters, batch)
        mean = 1.0 / jnp.maximum(weight, 1.0)
        norm = optax.tree.norm(grads) * mean
        scale = mean * jnp.minimum(1.0, clip_norm / (norm + 1e-6)) if clip_norm else mean
        grads = jax.tree.map(lambda g: g * scale, grads)
        rate = schedule(state.step)
        loads = {name: sums.pop(name) for name in ("expert_load", "expert_dropped") if name in sums}

        updates, moments = program.update(grads, state.moments, masters)
        updates = jax.tree.map(lambda u: u * rate, updates)
        update_norm = optax.tree.norm(updates)
        if loads:
            updates = program.balanced(updates, loads["expert_load"])
        updated = jax.tree.map(lambda master, u, p: (master + u).astype(p.dtype), masters, updates, state.parameters)

        good = jnp.isfinite(total) & jnp.isfinite(norm) & jnp.isfinite(update_norm)
        bad = 1 - good.astype(jnp.int32)
        keep_if_bad = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        parameters = jax.tree.map(keep_if_bad, program.reshard_to(updated, "stored"), state.parameters)
        average = state.average
        if average is not None:
            decay = program.ema_decay
            average = jax.tree.map(lambda a, p: jnp.where(good, decay * a + (1 - decay) * p, a).astype(a.dtype), average, parameters)
        new = TrainState(
            step=state.step + 1,
            parameters=parameters,
            moments=jax.tree.map(keep_if_bad, moments, state.moments),
            average=average,
            bad_steps=state.bad_steps + bad,
            bad_in_a_row=(state.bad_in_a_row + 1) * bad,
        )
        metrics = {
            "train_loss": total * mean,
            **{name: value * mean for name, value in sums.items()},
            **(load_metrics(loads) if loads else {}),
            "gradient_norm": norm,
            "update_norm": update_norm,
            "learning_rate": rate,
            "loss_weight": weight,
            "bad_steps": new.bad_steps,
            "bad_in_a_row": new.bad_in_a_row,
        }
        return new, metrics

    return step


def make_evaluation(program: TrainModel) -> Callable[[Any, Any, jax.Array], Metrics]:
    """evaluate(parameters, batch, token_bytes) -> sums of cross-entropy, weight and bytes of the targets."""
    from llm_jax.objective.next_token import ObjectiveConfig, next_token

    objective = next_token(ObjectiveConfig())

    def evaluate(parameters: Any, batch: Any, token_bytes: jax.Array) -> Metrics:
        _, weight, metrics = objective(program.model(parameters), batch)
        size = token_bytes.at[batch["targets"]].get(out_sharding=jax.typeof(batch["targets"]).sharding.spec)
        return {"cross_entropy": metrics["cross_entropy"], "weight": weight, "bytes": jnp.sum(size * batch["weights"])}

    return evaluate
