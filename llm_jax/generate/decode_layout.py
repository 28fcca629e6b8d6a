"""The placement of a model while it decodes: its layout without splits that one position at a time can't
use."""

from __future__ import annotations

import dataclasses

from llm_jax.layout.layout import Axes, Layout, MeshPlacement, split_axes
from llm_jax.model.config import ModelConfig

NOT_SPLIT = ("sequence", "keys", "layers")
"""Dims that a decoding layout leaves whole."""


def decoding_layout(layout: Layout) -> Layout:
    """The layout for decoding on the same mesh: how batch, heads, hidden units, experts and vocabulary are
    split, and weights at rest.

    A single position can't be split, so mesh axes that split the sequence split the batch instead. The stages
    of a pipeline would wait for each other, so their axes split the batch too (outside the blocks they
    already do), and weights at rest, which are gathered layer by layer as FSDP does.
    """
    batch = [*split_axes(layout.compute.get("batch", "")), *split_axes(layout.compute.get("sequence", ""))]
    compute = decoding_table(layout.compute)
    if batch:
        compute["batch"] = ", ".join(dict.fromkeys(batch))
    stored, stages = decoding_table(layout.stored), split_axes(layout.compute.get("layers", ""))
    if stages:
        at_rest = (*split_axes({**layout.compute, **layout.stored}.get("embed", "")), *stages)
        stored["embed"] = ", ".join(dict.fromkeys(at_rest))
    return Layout(name=f"{layout.name} (decoding)", mesh=layout.mesh, compute=compute, stored=stored)


def decoding_table(table: Axes) -> Axes:
    """A layout's table without the dims in `NOT_SPLIT`."""
    return {dim: axes for dim, axes in table.items() if dim not in NOT_SPLIT}


def decoding_place(place: MeshPlacement, config: ModelConfig) -> MeshPlacement:
    """The placement for decoding. Where a pipeline's axes don't divide `config.embed`, the weights are not
    split over them."""
    decoding = MeshPlacement(decoding_layout(place.layout), place.mesh)
    if config.embed % decoding.size(decoding.axes("embed", "stored")):
        decoding = MeshPlacement(
            dataclasses.replace(decoding.layout, stored=decoding_table(place.layout.stored)), place.mesh
        )
    return decoding
