"""Optimizers and learning-rate schedules, from Optax.

An optimizer is built with a learning rate of one; the train step multiplies its updates by the schedule at
the step's own number. So a skipped step does not shift the schedule, and decay is multiplied by the learning
rate for every optimizer alike. An experiment file adds one with `@register("name")`.

A parametrisation (`model/parametrization.py`) gives each weight its own multiple of the learning rate, and of
Adam's epsilon. Optimizers registered with `rates=True` heed them; the others run in the standard
parametrisation only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from llm_jax.core.errors import UserError, nearest, require
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import MATRIX_SIDES as MATRIX_SIDES
from llm_jax.model.dims import Dims, matrix_sides
from llm_jax.model.parametrization import NO_MULTIPLIERS, Multipliers, role, times


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated."""

    name: str = "adamw"
    """adamw, adafactor, lion, muon, or one that the experiment file registers."""
    learning_rate: float = 3e-3
    """The schedule's peak."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After warm-up: cosine or linear decay, warm-up-stable-decay (constant, then linear), or constant."""
    warmup_steps: int | None = None
    """Steps of linear warm-up from zero. None: a tenth of all steps, at most 100; a run that is resumed keeps
    the warm-up that it began with.
    """
    decay_fraction: float = 0.2
    """schedule=wsd: the part of all steps that the final decay takes."""
    final_fraction: float = 0.1
    """The learning rate at the end, as a fraction of the peak."""
    beta1: float = 0.9
    """Decay of the first moment (Lion: of the update's interpolation; Muon: of its Adam part)."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the denominator."""
    momentum: float = 0.95
    """name=muon: decay of its momentum."""
    weight_decay: float = 0.1
    """Decoupled decay, multiplied by the learning rate, on matrices and embeddings."""
    decay_embeddings: bool = True
    """Whether embeddings decay too; norms and biases never do."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: off."""
    matrix_learning_rate: float | None = None
    """name=muon: the peak for the matrices that Muon updates.

    None: `learning_rate` for all, with updates scaled to the size of Adam's (consistent RMS 0.2, Liu et al.
    2025).
    """

    def check(self) -> None:
        """Raises UserError for a value out of range, or an optimizer that nobody registered."""
        if self.name not in BUILDERS:
            raise UserError(
                f"optimizer.name={self.name}: no such optimizer; {nearest(self.name, BUILDERS)} (an "
                "experiment file can register one)"
            )
        positive = "above 0, e.g. {}".format
        require(
            0 < self.learning_rate < math.inf, "optimizer.learning_rate", self.learning_rate, positive("1e-3")
        )
        require(0 < self.epsilon < math.inf, "optimizer.epsilon", self.epsilon, positive("1e-8"))
        if self.matrix_learning_rate is not None:
            require(
                0 < self.matrix_learning_rate < math.inf,
                "optimizer.matrix_learning_rate",
                self.matrix_learning_rate,
                positive("0.02"),
            )
        if self.warmup_steps is not None:
            require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more steps")
        for key in ("beta1", "beta2", "momentum"):
            require(
                0 <= getattr(self, key) < 1, f"optimizer.{key}", getattr(self, key), "at least 0 and below 1"
            )
        for key in ("decay_fraction", "final_fraction"):
            require(0 <= getattr(self, key) <= 1, f"optimizer.{key}", getattr(self, key), "from 0 to 1")
        for key in ("weight_decay", "clip_norm"):
            require(
                0 <= getattr(self, key) < math.inf, f"optimizer.{key}", getattr(self, key), "0 (off) or more"
            )


@dataclass(frozen=True)
class ParameterInfo:
    """The facts about a parameter that an optimizer may use: the names of its dims (without the stacked
    `layers`), and its own multipliers.
    """

    dims: Dims
    stacked: bool
    multipliers: Multipliers = NO_MULTIPLIERS

    @property
    def is_matrix(self) -> bool:
        """A weight of a linear map inside a block, or a factor of an adapter on one."""
        return role(self.dims) in ("hidden", "router", "adapter")

    @property
    def is_embedding(self) -> bool:
        """A table: of pieces, of positions, or the output head."""
        return role(self.dims) == "table"


Builder = Callable[[OptimizerConfig, Any], optax.GradientTransformation]
SCHEDULE_KEYS = {f"optimizer.{name}" for name in ("warmup_steps", "schedule", "decay_fraction")}
"""The keys on which it depends whether a warm-up fits, beside train.steps."""
LONGEST_DEFAULT_WARMUP = 100
"""Steps of the warm-up of a run that is long enough, where none is given."""
BUILDERS: dict[str, Builder] = {}
WITH_RATES: set[str] = set()
"""The optimizers that heed a parametrisation's multipliers."""


def register(name: str, rates: bool = False) -> Callable[[Builder], Builder]:
    """Adds an optimizer: a function of (config, tree of ParameterInfo) to a transformation with learning rate
    one.

    rates: whether it heeds the multipliers in ParameterInfo, as `rescaled` does.
    """

    def add(builder: Builder) -> Builder:
        BUILDERS[name] = builder
        (WITH_RATES.add if rates else WITH_RATES.discard)(name)
        return builder

    return add


def make_optimizer(config: OptimizerConfig, info: Any) -> optax.GradientTransformation:
    """The transformation of gradients into updates for a learning rate of one.

    `info` is a tree of ParameterInfo with the structure of the parameters. Clipping is not in it: the train
    step clips, since it has the norm anyway.
    """
    return BUILDERS[config.name](config, info)


def check_parametrization(config: OptimizerConfig, model: ModelConfig) -> None:
    """Raises UserError for a parametrisation of the model that the optimizer would not heed."""
    if model.parametrization != "standard" and config.name not in WITH_RATES:
        raise UserError(
            f"optimizer.name={config.name}: has one learning rate for all weights, and "
            f"model.parametrization={model.parametrization} wants "
            f"one for each; use {' or '.join(sorted(WITH_RATES))}, or model.parametrization=standard"
        )


def rescaled(transformation: optax.GradientTransformation, info: Any) -> optax.GradientTransformation:
    """Adam's or Lion's updates, each weight's with its own multiples of the learning rate and of epsilon.

    An epsilon n times as large is a gradient divided by n, as m / (sqrt(v) + n epsilon) = (m / n) / (sqrt(v)
    / n + epsilon).
    """
    epsilons, rates = (
        jax.tree.map(lambda i, of=of: getattr(i.multipliers, of), info) for of in ("epsilon", "rate")
    )

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        gradients = jax.tree.map(lambda g, n: times(g, 1 / n), gradients, epsilons)
        updates, state = transformation.update(gradients, state, parameters)
        return jax.tree.map(times, updates, rates), state

    return optax.GradientTransformation(transformation.init, update)


def with_decay(
    config: OptimizerConfig, info: Any, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Updates against the gradient, rescaled, with decoupled decay: that is of the learning rate as it is,
    whatever a weight's own multiple (see `parametrization`).
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays(config, info))
    return optax.chain(rescaled(transformation, info), decay, optax.scale_by_learning_rate(1.0))


def decays(config: OptimizerConfig, info: Any) -> Any:
    """Which parameters decay: bools in the structure of the parameters."""
    return jax.tree.map(lambda i: i.is_matrix or (i.is_embedding and config.decay_embeddings), info)


@register("adamw", rates=True)
def adamw(config: OptimizerConfig, info: Any) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019."""
    return with_decay(config, info, optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))


@register("adafactor")
def adafactor(config: OptimizerConfig, info: Any) -> optax.GradientTransformation:
    """Shazeer & Stern 2018, with factored second moments and updates scaled by the parameters' size."""
    return optax.adafactor(
        1.0,
        weight_decay_rate=config.weight_decay or None,
        weight_decay_mask=decays(config, info),
    )


@register("lion", rates=True)
def lion(config: OptimizerConfig, info: Any) -> optax.GradientTransformation:
    """Chen et al. 2023. Wants about a tenth of AdamW's learning rate and ten times its decay."""
    return with_decay(config, info, optax.scale_by_lion(config.beta1, config.beta2))


@register("muon")
def muon_and_adamw(config: OptimizerConfig, info: Any) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the matrices of the blocks; AdamW, with Optax's Nesterov momentum, on
    everything else.
    """

    def sides(i: ParameterInfo) -> MuonDimensionNumbers | None:
        if not i.is_matrix:
            return None
        stacked = int(i.stacked)
        first, cut = (stacked + side for side in matrix_sides(i.dims))
        end = stacked + len(i.dims)
        return MuonDimensionNumbers(
            reduction_axis=tuple(range(first, cut)), output_axis=tuple(range(cut, end))
        )

    ratio = 1.0 if config.matrix_learning_rate is None else config.matrix_learning_rate / config.learning_rate
    updates = muon(
        ratio,
        beta=config.momentum,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        weight_decay_mask=decays(config, info),
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        adam_weight_decay=0.0,
        adam_learning_rate=1.0,
        muon_weight_dimension_numbers=jax.tree.map(sides, info),
        consistent_rms=0.2 if config.matrix_learning_rate is None else None,
    )
    # Optax's own decay of this part has no mask, and would decay norms and biases.
    embeddings = jax.tree.map(lambda i: i.is_embedding and config.decay_embeddings, info)
    return optax.chain(updates, optax.add_decayed_weights(-config.weight_decay, mask=embeddings))


def longest_warmup(config: OptimizerConfig, steps: int) -> int:
    """The most steps of warm-up after which there is still all of the decay."""
    if config.schedule == "wsd":
        return round(steps * (1 - config.decay_fraction))
    return steps if config.schedule == "constant" else steps - 1


def warmup(config: OptimizerConfig, steps: int) -> int:
    """Steps of warm-up of a run of so many steps."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return min(LONGEST_DEFAULT_WARMUP, steps // 10, longest_warmup(config, steps))


def warmup_fault(config: OptimizerConfig, steps: int) -> str:
    """What a warm-up that is too long for a run does to its learning rate; "" for one that fits."""
    given, longest = warmup(config, steps), longest_warmup(config, steps)
    if given > steps:
        return f"longer than the run: the learning rate reaches {steps / given:.0%} of its peak"
    if given <= longest:
        return ""
    if config.schedule == "wsd":
        return f"into the decay: {steps - given} of its {steps - longest} steps are left"
    return "as long as the run: no step is left for the decay"


def check_warmup(config: OptimizerConfig, steps: int, given: Iterable[str]) -> None:
    """Raises UserError for a warm-up that doesn't fit and is set by a command line. given: its keys.

    One of an experiment's file, or of a run's config.yaml, is left as it is: train.steps may have made the
    run shorter. The header of the run has `warmup_fault`.
    """
    fault = warmup_fault(config, steps)
    if fault and SCHEDULE_KEYS & set(given):
        default = warmup(dataclasses.replace(config, warmup_steps=None), steps)
        raise UserError(
            f"optimizer.warmup_steps={config.warmup_steps}: with train.steps={steps} it is {fault}. Use at "
            f"most {longest_warmup(config, steps)}, or null for {default}"
        )


def decay_begins(config: OptimizerConfig, steps: int) -> int:
    """How many steps are done when the decay begins (with schedule=constant: would begin)."""
    begins = warmup(config, steps)
    return max(begins, longest_warmup(config, steps)) if config.schedule == "wsd" else begins


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """step (int, from 0) → learning rate, float32. The first step has 1 / `warmup` of the peak."""
    warmup_steps, final = warmup(config, steps), config.final_fraction
    decay_from = decay_begins(config, steps)

    def schedule(step: jax.Array) -> jax.Array:
        done = jnp.asarray(step, jnp.float32) + 1
        up = jnp.minimum(done / max(1, warmup_steps), 1.0)
        progress = jnp.clip((done - decay_from) / max(1, steps - decay_from), 0.0, 1.0)
        if config.schedule == "constant":
            down = jnp.ones(())
        elif config.schedule == "cosine":
            down = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            down = 1 - (1 - final) * progress
        return jnp.asarray(config.learning_rate * up * down, jnp.float32)

    return schedule
