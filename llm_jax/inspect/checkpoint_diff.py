"""Differences between the weights of two checkpoints of one kind of model."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.data.token_labels import Vocabulary
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.model import PretrainedModel

MAY_DIFFER = ("attention", "max_segments", "scan_layers", "remat", "offload", "init_std")
"""Keys of model.* that, like dtypes, two models may differ in and still compute the same function of their
weights."""


class WeightDifference(NamedTuple):
    """The difference of one matrix or vector of one layer between two checkpoints: this one and another."""

    kind: str
    """Path of the weight: attention.query, embedding."""
    layer: int | None
    """None: the weight belongs to no layer."""
    relative: float
    """|other - this| / |this|, Frobenius norms; infinite if only this one is zero."""
    cosine: float
    """Cosine similarity of both as flat vectors; 0 if one is zero."""
    numbers: int
    """Number of entries of the weight."""


def check_alike(here: PretrainedModel, there: PretrainedModel, key: str) -> None:
    """Raises UserError if two models can't be compared: their shapes or tokenizers differ. key: for the
    error, diff=RUN."""
    ours, theirs = (dataclasses.asdict(o.config) for o in (here, there))
    for name, value in ours.items():
        if value != theirs[name] and name not in MAY_DIFFER and not name.endswith("_dtype"):
            raise UserError(
                f"{key}: is another kind of model: model.{name} is {theirs[name]} there and {value} here. "
                "Give a checkpoint of this model"
            )
    one, other = here.tokenizer_if_any, there.tokenizer_if_any
    if one and other and not same_vocabulary(one, other):
        raise UserError(
            f"{key}: has another tokenizer; checkpoints are compared token by token, so they must share one"
        )


def same_vocabulary(first: Tokenizer, second: Tokenizer) -> bool:
    """True if every id has the same bytes in both tokenizers. Their files may differ, as after an export to
    Hugging Face's format."""
    if first.fingerprint == second.fingerprint:
        return True
    one, other = Vocabulary(first), Vocabulary(second)
    return first.vocab_size == second.vocab_size and all(
        one[i].data == other[i].data for i in range(first.vocab_size)
    )


def weight_differences(here: PretrainedModel, there: PretrainedModel) -> list[WeightDifference]:
    """Differences of all weights of two models: those of no layer first, then layer by layer."""
    with jax.set_mesh(here.program.place.mesh):
        sums = jax.device_get(squared_sums(here.parameters, there.parameters))
    numbers = jax.tree.map(lambda w: w.size, here.program.abstract)
    of = stack_layers(here.program.model(here.program.abstract))
    found = []
    flat = jax.tree_util.tree_flatten_with_path(sums, is_leaf=lambda x: isinstance(x, SquaredSums))[0]
    for (path, s), count in zip(flat, jax.tree.leaves(numbers), strict=True):
        stack, *names = (str(k.key) for k in path)
        if stack not in of:
            names = [stack, *names]
            found.append(difference_from_sums(".".join(names), None, count, *(float(np.sum(x)) for x in s)))
            continue
        for i, layer in enumerate(of[stack]):
            found.append(
                difference_from_sums(
                    ".".join(names), layer, count // len(of[stack]), *(float(x[i]) for x in s)
                )
            )
    return sorted(found, key=lambda d: -1 if d.layer is None else d.layer)


class SquaredSums(NamedTuple):
    """Sums of squares and products over all dims but the first, which is the layer in stacked weights."""

    here: jax.Array
    there: jax.Array
    product: jax.Array
    difference: jax.Array


@jax.jit
def squared_sums(here: Any, there: Any) -> Any:
    """Two trees of arrays → a tree of `SquaredSums`, computed in float32."""

    def sums(a: jax.Array, b: jax.Array) -> SquaredSums:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        over = tuple(range(1, a.ndim))
        return SquaredSums(*(jnp.sum(x, over) for x in (a * a, b * b, a * b, jnp.square(b - a))))

    return jax.tree.map(sums, here, there)


def difference_from_sums(
    kind: str, layer: int | None, numbers: int, here: float, there: float, product: float, difference: float
) -> WeightDifference:
    """A `WeightDifference` from the sums of here², there², here · there and (there - here)²."""
    relative = (difference / here) ** 0.5 if here else (0.0 if not difference else float("inf"))
    size = (here * there) ** 0.5
    return WeightDifference(kind, layer, relative, min(product / size, 1.0) if size else 0.0, numbers)


def stack_layers(model: Transformer) -> dict[str, list[int]]:
    """The layer number of each row, for each stack of blocks."""
    stacks: dict[str, list[int]] = {"blocks": [], "dense_blocks": []}
    layer = 0
    for blocks, first, end in model.runs():
        stack = stacks["blocks" if blocks is model.blocks else "dense_blocks"]
        stack += range(layer, layer + end - first)
        layer += end - first
    return {name: layers for name, layers in stacks.items() if layers}
