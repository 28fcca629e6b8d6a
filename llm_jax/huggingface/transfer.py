"""Between files and devices, a part of an array at a time: at no time is more of a model in the host's memory than a few of these parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.huggingface.safetensors import Tensor
from llm_jax.huggingface.tensor_layout import Box, common, inside, split, whole
from llm_jax.huggingface.tensor_map import Table
from llm_jax.train.state import TrainModel

PARCEL = 64 << 20
"""Bytes that travel at once, about."""


def flat_paths(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by dotted paths."""
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from dotted paths."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        at = made
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return made


def shapes_of(program: TrainModel) -> dict[str, tuple[int, ...]]:
    """The shape of each of a program's weights."""
    return {path: w.shape for path, w in flat_paths(program.abstract).items()}


def read_parameters(table: Table, tensors: Mapping[str, Tensor], program: TrainModel, parcel: int = PARCEL) -> Any:
    """All weights of a program, from files, placed as its layout stores them and in its parameter dtype."""
    shardings = flat_paths(program.shardings("stored"))
    made = {}
    for path, w in flat_paths(program.abstract).items():
        piece = next(iter(table.pieces[path].values()))
        depth, lead = len(piece.prefix), piece.fit.lead
        order = [*range(depth), *([] if lead is None else [depth + lead])]
        read = functools.partial(table.read, tensors, path, dtype=w.dtype)
        made[path] = assemble(read, w.shape, w.dtype, shardings[path], split(whole(w.shape), order, parcel // w.dtype.itemsize))
    return nested(made)


def assemble(read: Callable[..., np.ndarray], shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding, boxes: list[Box]) -> jax.Array:
    """An array on its devices, of parts that `read(box=)` gives one after the other. Each device gets its own part of each."""
    own = {d: inside_bounds(index, shape) for d, index in sharding.addressable_devices_indices_map(shape).items()}
    buffers: dict[jax.Device, jax.Array] = {}
    if len(boxes) > 1:
        buffers = {d: jnp.zeros([s.stop - s.start for s in box], dtype, device=d) for d, box in own.items()}
    for box in boxes:
        if not any(common(box, mine) for mine in own.values()):
            continue
        part = read(box=box)
        for device, mine in own.items():
            here = common(box, mine)
            if here is None:
                continue
            piece = jax.device_put(part[inside(here, box)], device)  # turns what is turned by strides as it copies
            start = [s.start for s in inside(here, mine)]
            buffers[device] = piece if here == mine else put(buffers[device], piece, start)
        jax.block_until_ready(list(buffers.values()))  # what is on its way is in the host's memory
    return jax.make_array_from_single_device_arrays(shape, sharding, list(buffers.values()))


@functools.partial(jax.jit, donate_argnums=0)
def put(buffer: jax.Array, part: jax.Array, start: list[int]) -> jax.Array:
    """A part written into an array, in place."""
    return jax.lax.dynamic_update_slice(buffer, part, start)


def inside_bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """A device's part as a box: JAX leaves out the bounds of dims that are whole."""
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index or (), shape, strict=True))


def fetch(array: jax.Array, prefix: tuple[int, ...], inner: Box, turn: tuple[int, ...]) -> np.ndarray:
    """array[prefix][inner] on the host, its dims in the order `turn`, from the devices that have parts of it."""
    assert array.is_fully_addressable, "one process writes all of a model"
    shape, depth = array.shape, len(prefix)
    box = (*(slice(i, i + 1) for i in prefix), *inner)
    made = np.empty([inner[axis].stop - inner[axis].start for axis in turn], array.dtype)
    for shard in array.addressable_shards:
        mine = inside_bounds(shard.index, shape)
        here = common(box, mine) if shard.replica_id == 0 else None
        if here is None:
            continue
        local, at = inside(here, mine), inside(here, box)
        part = cut(shard.data, [s.start for s in local], tuple(s.stop - s.start for s in local), turn)
        made[tuple(at[depth + axis] for axis in turn)] = part
    return made


@functools.partial(jax.jit, static_argnums=(2, 3))
def cut(array: jax.Array, start: list[int], sizes: tuple[int, ...], turn: tuple[int, ...]) -> jax.Array:
    """A part of an array, its last dims in another order; those before are of size 1 and gone."""
    part = jax.lax.dynamic_slice(array, start, sizes)
    return jnp.transpose(part.reshape(sizes[len(sizes) - len(turn) :]), turn)
