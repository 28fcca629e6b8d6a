"""Moves arrays between files and devices in chunks, of which the host's memory holds only a few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.huggingface.safetensors import Tensor
from llm_jax.huggingface.tensor_layout import Box, intersection, relative_to, split_box, whole_box
from llm_jax.huggingface.tensor_map import TensorMap
from llm_jax.train.state import TrainModel

CHUNK_BYTES = 64 << 20
"""The size of a chunk, about."""


def flat_paths(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by dotted paths."""
    return {
        ".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by dotted paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return tree


def shapes_of(program: TrainModel) -> dict[str, tuple[int, ...]]:
    """The shape of each of a model's arrays, by dotted path."""
    return {path: w.shape for path, w in flat_paths(program.abstract).items()}


def read_parameters(
    tensor_map: TensorMap, tensors: Mapping[str, Tensor], program: TrainModel, chunk_bytes: int = CHUNK_BYTES
) -> Any:
    """All parameters of a model from files: nested dicts, placed as its layout stores them and in its
    parameter dtype.
    """
    shardings = flat_paths(program.shardings("stored"))
    arrays = {}
    for path, w in flat_paths(program.abstract).items():
        part = next(iter(tensor_map.slices[path].values()))
        depth, leading = len(part.prefix), part.pattern.leading_dim
        dims = [*range(depth), *([] if leading is None else [depth + leading])]
        read = functools.partial(tensor_map.read, tensors, path, dtype=w.dtype)
        chunks = split_box(whole_box(w.shape), dims, chunk_bytes // w.dtype.itemsize)
        arrays[path] = assemble(read, w.shape, w.dtype, shardings[path], chunks)
    return nested(arrays)


def assemble(
    read: Callable[..., np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: jax.sharding.Sharding,
    chunks: list[Box],
) -> jax.Array:
    """An array on its devices from chunks, which `read(box=)` gives one after the other; a device gets its
    part of each.
    """
    device_boxes = {
        d: box_of(index, shape) for d, index in sharding.addressable_devices_indices_map(shape).items()
    }
    buffers: dict[jax.Device, jax.Array] = {}
    if len(chunks) > 1:
        buffers = {
            d: jnp.zeros([s.stop - s.start for s in box], dtype, device=d) for d, box in device_boxes.items()
        }
    for chunk in chunks:
        if not any(intersection(chunk, own) for own in device_boxes.values()):
            continue
        values = read(box=chunk)
        for device, own in device_boxes.items():
            shared = intersection(chunk, own)
            if shared is None:
                continue
            part = jax.device_put(
                values[relative_to(shared, chunk)], device
            )  # applies a transposition by strides as it copies
            start = [s.start for s in relative_to(shared, own)]
            buffers[device] = part if shared == own else write_part(buffers[device], part, start)
        jax.block_until_ready(
            list(buffers.values())
        )  # until a copy is done, its source is in the host's memory
    return jax.make_array_from_single_device_arrays(shape, sharding, list(buffers.values()))


@functools.partial(jax.jit, donate_argnums=0)
def write_part(buffer: jax.Array, part: jax.Array, start: list[int]) -> jax.Array:
    """Writes a part into an array at the indices `start`, in place."""
    return jax.lax.dynamic_update_slice(buffer, part, start)


def box_of(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """A device's index into an array as a box: JAX omits the bounds of whole dims."""
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index or (), shape, strict=True))


def fetch(array: jax.Array, prefix: tuple[int, ...], inner: Box, permutation: tuple[int, ...]) -> np.ndarray:
    """array[prefix][inner], its dims in the order `permutation`, copied to the host from the devices that
    hold it.
    """
    assert array.is_fully_addressable, "a single process writes the whole model"
    shape, depth = array.shape, len(prefix)
    box = (*(slice(i, i + 1) for i in prefix), *inner)
    values = np.empty([inner[axis].stop - inner[axis].start for axis in permutation], array.dtype)
    for shard in array.addressable_shards:
        own = box_of(shard.index, shape)
        shared = intersection(box, own) if shard.replica_id == 0 else None
        if shared is None:
            continue
        local, at = relative_to(shared, own), relative_to(shared, box)
        part = read_part(
            shard.data, [s.start for s in local], tuple(s.stop - s.start for s in local), permutation
        )
        values[tuple(at[depth + axis] for axis in permutation)] = part
    return values


@functools.partial(jax.jit, static_argnums=(2, 3))
def read_part(
    array: jax.Array, start: list[int], sizes: tuple[int, ...], permutation: tuple[int, ...]
) -> jax.Array:
    """The part of an array at `start`, its last dims permuted; the dims before them have size 1 and are
    dropped.
    """
    part = jax.lax.dynamic_slice(array, start, sizes)
    return jnp.transpose(part.reshape(sizes[len(sizes) - len(permutation) :]), permutation)
