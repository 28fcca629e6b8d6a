"""One step: gradients of the objective, clipped, into an update; a bad one is skipped on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.model import router
from llm_jax.objective.protocol import Metric, Objective
from llm_jax.train.state import Frozen, TrainModel, TrainState

Metrics = dict[str, jax.Array]
Models = Mapping[str, TrainModel]
"""The frozen models of an objective, by role."""
NO_MODELS: Models = MappingProxyType({})


def make_step(
    model: TrainModel,
    objective: Objective,
    schedule: Callable[[jax.Array], jax.Array],
    clip_norm: float,
    frozen_models: Models = NO_MODELS,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """step(state, batch, frozen) -> (state, metrics), to be jitted with the state donated.

    Each array of the batch has a leading dim of microbatches, [A, B / A, ...]: their gradients are summed in
    a scan. Losses are sums and are divided by the sum of all weights, so the mean is the same however the
    batch is cut. frozen: a `Frozen` with the parameters of `frozen_models`; nothing in it is differentiated.
    """

    def loss_sum(masters: Any, parameters: Any, frozen: Frozen, microbatch: Any):
        policy = model.model(parameters, masters, frozen.rest)
        loss = objective.compute_loss(policy, frozen_policies(frozen_models, frozen), microbatch)
        total, metrics, loads = loss.total, dict(loss.metrics), {}
        if loss.routing is not None:
            routing_loss, sums = router.losses(model.config, loss.routing, loss.weight)
            total += routing_loss
            loads = {name: sums.pop(name) for name in ("expert_load", "expert_dropped")}
            metrics |= {name: Metric(value) for name, value in sums.items()}
        return total, (loss.weight, metrics, loads)

    def batch_totals(parameters: Any, frozen: Frozen, batch: Any) -> dict[str, jax.Array]:
        """The sums over the microbatches of what each loss needs of the whole batch."""
        policy, models = model.model(parameters, rest=frozen.rest), frozen_policies(frozen_models, frozen)
        return summed(lambda microbatch: dict(objective.totals(policy, models, microbatch)), batch)

    def gradients(masters: Any, parameters: Any, frozen: Frozen, batch: Any):
        """Sums over the microbatches: ((loss, weight, metrics, expert loads), gradients in float32 where the
        moments are).
        """
        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)
        totals = jax.lax.stop_gradient(batch_totals(parameters, frozen, batch))

        def of(microbatch: Any):
            (total, rest), grads = value_and_grad(masters, parameters, frozen, {**microbatch, **totals})
            return (total, *rest), grads

        return summed(of, batch)

    def step(state: TrainState, batch: Any, frozen: Frozen | None = None) -> tuple[TrainState, Metrics]:
        masters = model.master_params(state.parameters)
        (total, weight, sums, loads), grads = gradients(masters, state.parameters, frozen or Frozen(), batch)
        mean = 1.0 / jnp.where(weight > 0, weight, 1.0)  # a batch without a trained token has a loss of 0
        norm = optax.tree.norm(grads) * mean
        scale = mean * jnp.minimum(1.0, clip_norm / (norm + 1e-6)) if clip_norm else mean
        grads = jax.tree.map(lambda g: g * scale, grads)
        rate = schedule(state.step)

        updates, moments = model.update(grads, state.moments, masters)
        updates = jax.tree.map(lambda u: u * rate, updates)
        update_norm = optax.tree.norm(updates)
        if loads:
            updates = model.balanced(updates, loads["expert_load"])
        updated = jax.tree.map(
            lambda master, u, p: (master + u).astype(p.dtype), masters, updates, state.parameters
        )

        good = jnp.isfinite(total) & jnp.isfinite(norm) & jnp.isfinite(update_norm)
        bad = 1 - good.astype(jnp.int32)
        keep_if_bad = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        parameters = jax.tree.map(keep_if_bad, model.reshard_to(updated, "stored"), state.parameters)
        average = state.average
        if average is not None:
            decay = model.ema_decay
            average = jax.tree.map(
                lambda a, p: jnp.where(good, decay * a + (1 - decay) * p, a).astype(a.dtype),
                average,
                parameters,
            )
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
            **{
                name: value * mean if own is None else value / jnp.where(own > 0, own, 1.0)
                for name, (value, own) in sums.items()
            },
            **(router.load_metrics(loads) if loads else {}),
            "gradient_norm": norm,
            "update_norm": update_norm,
            "learning_rate": rate,
            "loss_weight": weight,
            "bad_steps": new.bad_steps,
            "bad_in_a_row": new.bad_in_a_row,
        }
        return new, metrics

    return step


def summed(of: Callable[[Any], Any], batch: Any) -> Any:
    """The sum of `of` over the microbatches of a batch, whose arrays are [A, B / A, ...]."""
    first = of(jax.tree.map(lambda x: x[0], batch))
    if jax.tree.leaves(batch)[0].shape[0] == 1 or not jax.tree.leaves(first):
        return first
    rest = jax.tree.map(lambda x: x[1:], batch)
    return jax.lax.scan(
        lambda sums, microbatch: (jax.tree.map(jnp.add, sums, of(microbatch)), None), first, rest
    )[0]


def make_evaluation(
    model: TrainModel, objective: Objective, frozen_models: Models = NO_MODELS
) -> Callable[..., Metrics]:
    """evaluate(parameters, batch, token_bytes, frozen) -> the sums of `Objective.evaluate`, to be jitted."""

    def evaluate(
        parameters: Any, batch: Any, token_bytes: jax.Array, frozen: Frozen | None = None
    ) -> Metrics:
        frozen = frozen or Frozen()
        policy = model.model(parameters, rest=frozen.rest)
        return dict(objective.evaluate(policy, frozen_policies(frozen_models, frozen), batch, token_bytes))

    return evaluate


def frozen_policies(models: Models, frozen: Frozen) -> dict[str, Any]:
    """The frozen models with their parameters, by role. What a model does not bring along is the policy's
    own: the run's start shares with it what isn't trained."""
    return {
        role: model.model(frozen.models[role], rest=model.rest(frozen.rest)) for role, model in models.items()
    }
