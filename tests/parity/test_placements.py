"""Where every preset puts every kind of array, on 8 devices: so that a wrong entry of a table is seen also
where it changes no result.

Losses can't tell whether moments are split or whole. This list can, and
`test_every_entry_of_a_table_has_an_effect` says that nothing in a preset's tables is beyond it.
"""

from __future__ import annotations

import dataclasses

import pytest

from llm_jax.layout.layout import TABLES, Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.model.dims import Dims, Table

MESHES = {"hybrid_fsdp": {"data": 4}, "tensor": {"tensor": 4}, "pipeline": {"stage": 2}}
"""Mesh sizes for presets whose own mesh has an axis of size 1 on 8 devices."""

WEIGHTS = {
    "query": ("layers", "embed", "heads", "head_dim"),
    "down": ("layers", "mlp", "embed"),
    "expert": ("layers", "experts", "embed", "mlp"),
    "embedding": ("vocab", "embed"),
}
FLOW = {
    "stream": (("batch", "sequence", "embed"), "residual"),
    "hidden": (("batch", "sequence", "mlp"), "compute"),
    "logits": (("batch", "sequence", "vocab"), "compute"),
    "queries": (("batch", "sequence", "heads"), "attention"),
    "keys": (("batch", "keys", "kv_heads"), "attention"),
}


def placements(layout: Layout, mesh: dict[str, int]) -> dict[str, str]:
    """Name of an array → the axes that split its dims, "-" for one that is whole; of a weight at rest /
    multiplied / its moments."""
    place = MeshPlacement(layout, make_mesh(layout, mesh))

    def said(dims: Dims, table: Table) -> str:
        return " ".join("+".join(axes) or "-" for axes in place.split(dims, table))

    weights = {
        name: " / ".join(said(dims, table) for table in ("stored", "compute", "optimizer"))
        for name, dims in WEIGHTS.items()
    }
    return weights | {name: said(dims, table) for name, (dims, table) in FLOW.items()}


GOLDEN: dict[str, dict[str, str]] = {
    "single": {
        "query": "- - - - / - - - - / - - - -",
        "down": "- - - / - - - / - - -",
        "expert": "- - - - / - - - - / - - - -",
        "embedding": "- - / - - / - -",
        "stream": "- - -",
        "hidden": "- - -",
        "logits": "- - -",
        "queries": "- - -",
        "keys": "- - -",
    },
    "data_parallel": {
        "stream": "data - -",
        "hidden": "data - -",
        "logits": "data - -",
        "queries": "data - -",
        "keys": "data - -",
    },
    "zero1": {
        "query": "- - - - / - - - - / - data - -",
        "down": "- - - / - - - / - - data",
        "expert": "- - - - / - - - - / - - data -",
        "embedding": "- - / - - / - data",
        "stream": "data - -",
        "hidden": "data - -",
        "logits": "data - -",
        "queries": "data - -",
        "keys": "data - -",
    },
    "fsdp": {
        "query": "- data - - / - - - - / - data - -",
        "down": "- - data / - - - / - - data",
        "expert": "- - data - / - - - - / - - data -",
        "embedding": "- data / - - / - data",
        "stream": "data - -",
        "hidden": "data - -",
        "logits": "data - -",
        "queries": "data - -",
        "keys": "data - -",
    },
    "hybrid_fsdp": {
        "query": "- data - - / - - - - / - data - -",
        "down": "- - data / - - - / - - data",
        "expert": "- - data - / - - - - / - - data -",
        "embedding": "- data / - - / - data",
        "stream": "node+data - -",
        "hidden": "node+data - -",
        "logits": "node+data - -",
        "queries": "node+data - -",
        "keys": "node+data - -",
    },
    "tensor": {
        "query": "- - tensor - / - - tensor - / - - tensor -",
        "down": "- tensor - / - tensor - / - tensor -",
        "expert": "- - - tensor / - - - tensor / - - - tensor",
        "embedding": "tensor - / tensor - / tensor -",
        "hidden": "- - tensor",
        "logits": "- - tensor",
        "queries": "- - tensor",
        "keys": "- - tensor",
    },
    "fsdp_tensor": {
        "query": "- data tensor - / - - tensor - / - data tensor -",
        "down": "- tensor data / - tensor - / - tensor data",
        "expert": "- - data tensor / - - - tensor / - - data tensor",
        "embedding": "tensor data / tensor - / tensor data",
        "stream": "data - -",
        "hidden": "data - tensor",
        "logits": "data - tensor",
        "queries": "data - tensor",
        "keys": "data - tensor",
    },
    "fsdp_tensor_sequence": {
        "query": "- data tensor - / - - tensor - / - data tensor -",
        "down": "- tensor data / - tensor - / - tensor data",
        "expert": "- - data tensor / - - - tensor / - - data tensor",
        "embedding": "tensor data / tensor - / tensor data",
        "stream": "data tensor -",
        "hidden": "data - tensor",
        "logits": "data - tensor",
        "queries": "data - tensor",
        "keys": "data - tensor",
    },
    "context_gather": {
        "query": "- data+context - - / - - - - / - data+context - -",
        "down": "- - data+context / - - - / - - data+context",
        "expert": "- - data+context - / - - - - / - - data+context -",
        "embedding": "- data+context / - - / - data+context",
        "stream": "data context -",
        "hidden": "data context -",
        "logits": "data context -",
        "queries": "data context -",
        "keys": "data - -",
    },
    "context_ring": {
        "query": "- data+context - - / - - - - / - data+context - -",
        "down": "- - data+context / - - - / - - data+context",
        "expert": "- - data+context - / - - - - / - - data+context -",
        "embedding": "- data+context / - - / - data+context",
        "stream": "data context -",
        "hidden": "data context -",
        "logits": "data context -",
        "queries": "data context -",
        "keys": "data context -",
    },
    "context_ulysses": {
        "query": "- data+context - - / - - - - / - data+context - -",
        "down": "- - data+context / - - - / - - data+context",
        "expert": "- - data+context - / - - - - / - - data+context -",
        "embedding": "- data+context / - - / - data+context",
        "stream": "data context -",
        "hidden": "data context -",
        "logits": "data context -",
        "queries": "data - context",
        "keys": "data - context",
    },
    "expert": {
        "query": "- data+expert - - / - - - - / - data+expert - -",
        "down": "- - data+expert / - - - / - - data+expert",
        "expert": "- expert data - / - expert - - / - expert data -",
        "embedding": "- data+expert / - - / - data+expert",
        "stream": "data+expert - -",
        "hidden": "data+expert - -",
        "logits": "data+expert - -",
        "queries": "data+expert - -",
        "keys": "data+expert - -",
    },
    "expert_tensor": {
        "query": "- data+expert tensor - / - - tensor - / - data+expert tensor -",
        "down": "- tensor data+expert / - tensor - / - tensor data+expert",
        "expert": "- expert data tensor / - expert - tensor / - expert data tensor",
        "embedding": "tensor data+expert / tensor - / tensor data+expert",
        "stream": "data+expert tensor -",
        "hidden": "data+expert - tensor",
        "logits": "data+expert - tensor",
        "queries": "data+expert - tensor",
        "keys": "data+expert - tensor",
    },
    "pipeline": {
        "query": "stage - - - / stage - - - / stage data - -",
        "down": "stage - - / stage - - / stage - data",
        "expert": "stage - - - / stage - - - / stage - data -",
        "embedding": "- - / - - / stage data",
        "stream": "stage+data - -",
        "hidden": "stage+data - -",
        "logits": "stage+data - -",
        "queries": "stage+data - -",
        "keys": "stage+data - -",
    },
    "pipeline_tensor": {
        "query": "stage - tensor - / stage - tensor - / stage data tensor -",
        "down": "stage tensor - / stage tensor - / stage tensor data",
        "expert": "stage - - tensor / stage - - tensor / stage - data tensor",
        "embedding": "tensor - / tensor - / tensor+stage data",
        "stream": "stage+data tensor -",
        "hidden": "stage+data - tensor",
        "logits": "stage+data - tensor",
        "queries": "stage+data - tensor",
        "keys": "stage+data - tensor",
    },
}
"""Arrays that are not listed are whole, as under `single`."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_places_arrays_as_listed(name):
    found = placements(PRESETS[name], MESHES.get(name, {}))
    assert found == {array: GOLDEN[name].get(array, GOLDEN["single"][array]) for array in found}


@pytest.mark.parametrize("name", PRESETS)
def test_every_entry_of_a_table_has_an_effect(name):
    layout = PRESETS[name]
    found = placements(layout, MESHES.get(name, {}))
    for table in TABLES:
        for dim in getattr(layout, table):
            less = {key: axes for key, axes in getattr(layout, table).items() if key != dim}
            assert placements(dataclasses.replace(layout, **{table: less}), MESHES.get(name, {})) != found, (
                f"{table}.{dim}"
            )
