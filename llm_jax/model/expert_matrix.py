"""The matrices of the experts of one layer, gathered for `moe`: alone, or a frozen one with an adapter for
each expert beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.model.adapted_weight import adapter_parts, base_of, dora_factor, factor_dims
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.weight_use import Weight, frozen_gathered, frozen_value
from llm_jax.model.weight_values import Adapted
from llm_jax.model.weights import gathered


class ExpertMatrix(NamedTuple):
    """One matrix of each expert, or the dims of these arrays."""

    base: Any
    """[E, inputs, outputs]. Without an adapter in the gradient dtype: each device's gradient of its experts
    is summed over devices in the dtype that it enters `local` in."""
    lora_A: Any = None
    """[E, inputs, rank], in the gradient dtype, times the adapter's scaling."""
    lora_B: Any = None
    """[E, rank, outputs], in the gradient dtype."""
    factor: Any = None
    """DoRA: float32 [E, outputs], what each output is multiplied with."""

    def product(self, product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """Rows times their experts' matrices. product(x, w): rows x, grouped by expert, times w [E, ., .]."""
        y = product(x, self.base)
        if self.lora_A is not None:
            y += product(product(x, self.lora_A), self.lora_B)
        if self.factor is not None:  # as a product too: its gradient is then a sum over each expert's rows
            y *= product(jnp.ones((*x.shape[:-1], 1), x.dtype), self.factor[:, None])
        return y


def expert_matrix(w: Weight, config: ModelConfig, place: Placement) -> ExpertMatrix:
    """A weight [E, inputs, outputs] and its adapter, gathered."""
    value = w.get_value()
    if not isinstance(value, Adapted):
        whole = gathered(w, config, place)
        return ExpertMatrix(whole if frozen_value(w) is not None else whole.astype(config.gradient_dtype))
    lora_A, lora_B, magnitude = adapter_parts(w, value)
    A, B = (gathered(part, config, place).astype(config.gradient_dtype) for part in (lora_A, lora_B))
    base = frozen_gathered(base_of(w, value), config, place)
    A = (A * value.scaling).astype(config.gradient_dtype)
    if magnitude is None:
        return ExpertMatrix(base, A, B)
    return ExpertMatrix(base, A, B, dora_factor(w, value, magnitude, config, place))


def expert_matrix_dims(w: Weight) -> ExpertMatrix:
    """The dims of the arrays of `expert_matrix`."""
    value = w.get_value()
    if not isinstance(value, Adapted):
        return ExpertMatrix(w.dims)
    dims_A, dims_B, dims_m = factor_dims(w.dims)
    return ExpertMatrix(w.dims, dims_A, dims_B, dims_m if value.magnitude is not None else None)


def is_dims(x: Any) -> bool:
    """True for the dims of one array: a leaf of `expert_matrix_dims`."""
    return isinstance(x, tuple) and not isinstance(x, ExpertMatrix)
