"""Two checkpoints of one kind of model: how far apart their weights are."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import Tokenizer
from llm_jax.inspect.tokens import Vocabulary
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.model import PretrainedModel

MAY_DIFFER = ("attention", "max_segments", "scan_layers", "remat", "offload", "init_std")
"""What two models may differ in, besides dtypes, and compute the same function of their weights."""


class WeightDifference(NamedTuple):
    """One matrix or vector of one layer, there and here."""

    kind: str
    """Its path: attention.query; embedding."""
    layer: int | None
    """None: it is of no layer."""
    relative: float
    """|other - this| / |this|, Frobenius norms; infinite where this is zero and the other isn't."""
    cosine: float
    """Of the two, as long vectors; 0 where one is zero."""
    numbers: int
    """How many entries it has."""


def check_alike(here: PretrainedModel, there: PretrainedModel, key: str) -> None:
    """Raises UserError where two opened models can't be compared: other shapes, or another tokenizer."""
    ours, theirs = (dataclasses.asdict(o.config) for o in (here, there))
    for name, value in ours.items():
        if value != theirs[name] and name not in MAY_DIFFER and not name.endswith("_dtype"):
            raise UserError(f"{key}: is another kind of model: model.{name} is {theirs[name]} there and {value} here")
    one, other = here.tokenizer_if_any, there.tokenizer_if_any
    if one and other and not same_tokens(one, other):
        raise UserError(f"{key}: has another tokenizer; checkpoints are compared token by token, so they must share one")


def same_tokens(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether ids stand for the same bytes in both: the files may differ, as a model's own and those it was exported with."""
    if first.fingerprint == second.fingerprint:
        return True
    one, other = Vocabulary(first), Vocabulary(second)
    return first.vocab_size == second.vocab_size and all(one[i].data == other[i].data for i in range(first.vocab_size))


def weight_differences(here: PretrainedModel, there: PretrainedModel) -> list[WeightDifference]:
    """Of all weights of two opened models, layer by layer, in the order of the layers."""
    with jax.set_mesh(here.program.place.mesh):
        sums = jax.device_get(jitted_sums(here.parameters, there.parameters))
    numbers = jax.tree.map(lambda w: w.size, here.program.abstract)
    of = layers_of(here.program.model(here.program.abstract))
    found = []
    flat = jax.tree_util.tree_flatten_with_path(sums, is_leaf=lambda x: isinstance(x, Sums))[0]
    for (path, s), count in zip(flat, jax.tree.leaves(numbers), strict=True):
        stack, *names = (str(k.key) for k in path)
        if stack not in of:
            names = [stack, *names]
            found.append(compared(".".join(names), None, count, *(float(np.sum(x)) for x in s)))
            continue
        for i, layer in enumerate(of[stack]):
            found.append(compared(".".join(names), layer, count // len(of[stack]), *(float(x[i]) for x in s)))
    return sorted(found, key=lambda d: -1 if d.layer is None else d.layer)


class Sums(NamedTuple):
    """Sums over all but the first dim."""

    here: jax.Array
    there: jax.Array
    product: jax.Array
    difference: jax.Array


@jax.jit
def jitted_sums(here: Any, there: Any) -> Any:
    """Trees of arrays → a tree of `Sums`, in float32."""

    def sums(a: jax.Array, b: jax.Array) -> Sums:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        over = tuple(range(1, a.ndim))
        return Sums(*(jnp.sum(x, over) for x in (a * a, b * b, a * b, jnp.square(b - a))))

    return jax.tree.map(sums, here, there)


def compared(kind: str, layer: int | None, numbers: int, here: float, there: float, product: float, difference: float) -> WeightDifference:
    """From sums of squares and products."""
    relative = (difference / here) ** 0.5 if here else (0.0 if not difference else float("inf"))
    size = (here * there) ** 0.5
    return WeightDifference(kind, layer, relative, min(product / size, 1.0) if size else 0.0, numbers)


def layers_of(model: Transformer) -> dict[str, list[int]]:
    """For each stack of blocks: the layers that its rows are of."""
    stacks: dict[str, list[int]] = {"blocks": [], "dense_blocks": []}
    layer = 0
    for blocks, first, end in model.runs():
        stack = stacks["blocks" if blocks is model.blocks else "dense_blocks"]
        stack += range(layer, layer + end - first)
        layer += end - first
    return {name: layers for name, layers in stacks.items() if layers}
