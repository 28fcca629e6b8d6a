"""Where a model lives while it decodes: the layout that it was opened with, without what one position at a time has no use for."""

from __future__ import annotations

import dataclasses

from llm_jax.layout.layout import Axes, Layout, MeshPlacement, split_axes
from llm_jax.model.config import ModelConfig


def decoding_layout(layout: Layout) -> Layout:
    """The layout for decoding on the same mesh. It says where batch, heads, hidden units, experts and vocabulary are split, and weights at rest.

    A position can't be split: axes that split the sequence split the batch. Stages of a pipeline would wait for each other: their axes split
    the batch too (they do so already outside of the blocks), and weights at rest, which are gathered for each layer, as by FSDP.
    """
    batch = [*split_axes(layout.compute.get("batch", "")), *split_axes(layout.compute.get("sequence", ""))]
    compute = kept(layout.compute)
    if batch:
        compute["batch"] = ", ".join(dict.fromkeys(batch))
    stored, stages = kept(layout.stored), split_axes(layout.compute.get("layers", ""))
    if stages:
        at_rest = (*split_axes({**layout.compute, **layout.stored}.get("embed", "")), *stages)
        stored["embed"] = ", ".join(dict.fromkeys(at_rest))
    return Layout(name=f"{layout.name} (decoding)", mesh=layout.mesh, compute=compute, stored=stored)


def kept(table: Axes) -> Axes:
    """A table without the dims that decoding doesn't split."""
    return {dim: axes for dim, axes in table.items() if dim not in ("sequence", "keys", "layers")}


def decoding_place(place: MeshPlacement, config: ModelConfig) -> MeshPlacement:
    """The placement of a layout for decoding; weights stay whole where the axes of stages don't divide them."""
    decoding = MeshPlacement(decoding_layout(place.layout), place.mesh)
    if config.embed % decoding.size(decoding.axes("embed", "stored")):
        decoding = MeshPlacement(dataclasses.replace(decoding.layout, stored=kept(place.layout.stored)), place.mesh)
    return decoding
