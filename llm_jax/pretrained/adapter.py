"""An adapter from a PEFT folder, merged into the weights of its base: in float32, cast last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.huggingface.family import family_for
from llm_jax.huggingface.peft import Base, LowRank, PeftAdapter, read_peft
from llm_jax.huggingface.peft_reduced import unreduced
from llm_jax.huggingface.transfer import flat_paths, nested
from llm_jax.model.config import ModelConfig
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.source import ModelSource
from llm_jax.train.state import TrainModel, pure

TABLES = ("embedding", "positions", "head")
"""Arrays that are no linear map of a block."""


def base_of(source: ModelSource, model: ModelConfig | None = None) -> Base:
    """What reading and writing an adapter needs of its base: nothing of its weights is read.

    model: its configuration, resolved; None: as in the folder. Raises UserError if no family can express it.
    """
    model = model or source.experiment.model.resolved()
    family, tree = (source.folder.family, source.folder.tree) if source.folder else (family_for(model), {})
    _, weights = nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))
    shapes = {name: w.shape for name, w in flat_paths(pure(weights)).items()}
    return Base(family, model, tree or family.write_config(model), shapes, str(source.path))


def in_float32(program: TrainModel, tied: bool) -> TrainModel:
    """The model of an adapter's base, whose weights it is to be merged into."""
    config = dataclasses.replace(program.config, parameter_dtype="float32", tied_embeddings=tied)
    return TrainModel(config, program.optimizer, program.place)


def merge_folder(path: Path, base: Base, wide: TrainModel, parameters: Any, program: TrainModel) -> Any:
    """The parameters of `program`: those of a base with the adapter of a PEFT folder.

    wide, parameters: the base in float32 (`in_float32`). Its embedding may be its head too, where that of
    `program` is not. Raises UserError for an adapter that can't be read, or is for another base.
    """
    arrays = flat_paths(parameters)
    adapter = read_peft(path, base)
    if "head" not in arrays and "head" in flat_paths(program.abstract):
        arrays["head"] = arrays["embedding"]
    adapter = unreduced(adapter, base, lambda name, at: on_host(arrays[name][at], wide))
    arrays |= {name: placed(value, name, wide) for name, value in replaced(adapter, arrays, wide).items()}
    factors = {name: on_devices(low, wide) for name, low in adapter.low_rank.items()}

    def merge(arrays: dict[str, jax.Array], factors: Mapping[str, tuple[Any, Any, Any, Any]]) -> Any:
        merged = {
            name: merged_array(w, *factors[name], name == "head") if name in factors else w
            for name, w in arrays.items()
        }
        whole = jax.tree.map(lambda w, like: w.astype(like.dtype), nested(merged), program.abstract)
        return program.reshard_to(whole, "stored")

    with jax.set_mesh(program.place.mesh):
        return program.jit(merge)(arrays, factors)


def replaced(
    adapter: PeftAdapter, arrays: Mapping[str, jax.Array], wide: TrainModel
) -> dict[str, np.ndarray]:
    """The arrays of which an adapter brings slices of its own (`modules_to_save`, biases), whole."""
    found = {}
    for name, slices in adapter.whole.items():
        value = np.array(on_host(arrays[name], wide))
        for at, part in slices.items():
            value[at] = part
        found[name] = value
    return found


def on_host(array: jax.Array, model: TrainModel) -> np.ndarray:
    """A copy of a whole array in this process's memory."""
    with jax.set_mesh(model.place.mesh):
        everywhere = model.jit(lambda x: jax.sharding.reshard(x, PartitionSpec()))(array)
    return np.asarray(everywhere.addressable_data(0))


def placed(value: np.ndarray, name: str, model: TrainModel) -> jax.Array:
    """An array on the devices, where the layout stores it; one that the model lacks on all of them."""
    shardings = flat_paths(model.shardings("stored"))
    everywhere = NamedSharding(model.place.mesh, PartitionSpec())
    return jax.device_put(value.astype(np.float32), shardings.get(name, everywhere))


def on_devices(low: LowRank, model: TrainModel) -> tuple[Any, Any, Any, Any]:
    """(A, B, factor of A B, and with DoRA the magnitude), each on all devices."""
    everywhere = NamedSharding(model.place.mesh, PartitionSpec())
    values = (low.lora_A, low.lora_B, low.scales.astype(np.float32), low.magnitude)
    return jax.device_put(values, everywhere)


def merged_array(
    w: jax.Array,
    lora_A: jax.Array,
    lora_B: jax.Array,
    scale: jax.Array,
    magnitude: jax.Array | None,
    head: bool,
) -> jax.Array:
    """W + scale A B, and with a magnitude m (m / |W + scale A B|) of each output times that; float32, placed
    like W.

    w: [stacked..., in dims..., out dims...], or for a head [out, in]. lora_A: [stacked..., in dims..., rank],
    lora_B: [stacked..., rank, out dims...], scale: [layers], or fewer or more of the stacked dims.
    """
    batch = lora_A.ndim + lora_B.ndim - 2 - w.ndim
    letters = "abcdefgh"[: w.ndim]
    stacked, rest = letters[:batch], letters[batch:]
    ins, outs = rest[: lora_A.ndim - 1 - batch], rest[lora_A.ndim - 1 - batch :]
    order = f"{outs}{ins}" if head else letters
    spec = jax.typeof(w).sharding.spec
    product = jnp.einsum(
        f"{stacked}{ins}r,{stacked}r{outs}->{order}",
        lora_A,
        lora_B,
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=spec,
    )
    along = jnp.expand_dims(scale, tuple(range(scale.ndim, w.ndim)))
    whole = w + along * product
    if magnitude is None:
        return whole
    axes = tuple(i for i, letter in enumerate(order) if letter in ins)
    length = jnp.sqrt(jnp.sum(jnp.square(whole), axes, keepdims=True))
    m = jnp.expand_dims(magnitude, axes)
    m = jax.sharding.reshard(m, jax.typeof(length).sharding.spec)
    return whole * jnp.where(along > 0, m / length, 1.0)
