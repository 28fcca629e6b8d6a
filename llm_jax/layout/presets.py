"""The layouts that have a name. Each is a few words; an experiment file defines others the same way."""

from __future__ import annotations

from llm_jax.core.errors import UserError, nearest
from llm_jax.layout.layout import Layout

EXPERTS = {"batch": "data, expert", "experts": "expert"}
STAGES = {"batch": "stage, data", "layers": "stage"}
TENSOR = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
CONTEXT = {"batch": "data", "sequence": "context"}
OVER_BOTH = {"embed": "data,context"}

PRESETS = {
    layout.name: layout
    for layout in (
        # One device does everything: the reference that all others must agree with.
        Layout("single", mesh={"data": 1}),
        # Every device has all weights and a part of the batch; gradients are summed.
        Layout("data_parallel", mesh={"data": -1}, compute={"batch": "data"}),
        # Every device has all weights, and the gradients, moments and update of a part of them (ZeRO-1 and 2, Rajbhandari et al. 2020).
        Layout("zero1", mesh={"data": -1}, compute={"batch": "data"}, optimizer={"embed": "data"}),
        # Weights, gradients and moments are split too, and gathered for use (ZeRO-3, Rajbhandari et al. 2020).
        Layout("fsdp", mesh={"data": -1}, compute={"batch": "data"}, stored={"embed": "data"}),
        # The same within each node (of 8 here), and copies of that on the nodes: weights are gathered inside a node, and the gradients'
        # sums over the network are of a node's eighths (MiCS, Zhang et al. 2022; HSDP, Zhao et al. 2023).
        Layout("hybrid_fsdp", mesh={"node": -1, "data": 8}, compute={"batch": "node, data"}, stored={"embed": "data"}),
        # Each matrix product is split over its heads or hidden units (Megatron-LM, Shoeybi et al. 2019).
        Layout("tensor", mesh={"tensor": -1}, compute=TENSOR),
        # Both: tensor within a group of devices, fsdp across the groups.
        Layout("fsdp_tensor", mesh={"data": -1, "tensor": 2}, compute={"batch": "data", **TENSOR}, stored={"embed": "data"}),
        # The same, with the stream between products split over the sequence, so that norms and what is kept for the backward
        # pass are split too; each all-reduce becomes a reduce-scatter and an all-gather (Korthikanti et al. 2022).
        Layout(
            "fsdp_tensor_sequence",
            mesh={"data": -1, "tensor": 2},
            compute={"batch": "data", **TENSOR},
            stored={"embed": "data"},
            residual={"sequence": "tensor"},
        ),
        # Long sequences are split over devices, and weights over these too; the keys of all are gathered (Llama 3, 2024),
        Layout("context_gather", mesh={"data": -1, "context": 2}, compute=CONTEXT, stored=OVER_BOTH),
        # or go round in a ring, so that no device ever has all of them (Liu et al. 2023),
        Layout("context_ring", mesh={"data": -1, "context": 2}, compute=CONTEXT, stored=OVER_BOTH, attention={"keys": "context"}),
        # or each device gets whole sequences of some heads, by an all-to-all (DeepSpeed-Ulysses, Jacobs et al. 2023).
        Layout(
            "context_ulysses",
            mesh={"data": -1, "context": 2},
            compute=CONTEXT,
            stored=OVER_BOTH,
            attention={"sequence": "", "heads": "context", "kv_heads": "context"},
        ),
        # A mixture of experts: a group of devices shares the experts of a layer, and each sends its tokens to those that have them
        # (GShard, Lepikhin et al. 2020). For all else the group splits the batch, and weights at rest, as data does.
        Layout("expert", mesh={"data": -1, "expert": 4}, compute=EXPERTS, stored={"embed": "data, expert"}),
        # The same, and within a smaller group all products are split, those of each expert too, and the stream between them.
        Layout(
            "expert_tensor",
            mesh={"data": -1, "expert": 2, "tensor": 2},
            compute={**EXPERTS, **TENSOR},
            stored={"embed": "data, expert"},
            residual={"sequence": "tensor"},
        ),
        # Groups of layers on groups of devices (GPipe, Huang et al. 2019), which send each other only the stream: for the slowest
        # network. Outside of the blocks the stages split the batch, and the tables' moments. Weights are whole on the devices of
        # `data`, and only the moments are split (ZeRO-1): gathered as by fsdp, they would travel again for every microbatch.
        Layout("pipeline", mesh={"stage": 4, "data": -1}, compute=STAGES, optimizer={"embed": "data", "vocab": "stage"}),
        # All three dimensions of Narayanan et al. 2021: layers across nodes, matrices within one, and the batch over the rest.
        Layout(
            "pipeline_tensor",
            mesh={"stage": 2, "data": -1, "tensor": 2},
            compute={**STAGES, **TENSOR},
            optimizer={"embed": "data", "vocab": "tensor, stage"},
            residual={"sequence": "tensor"},
        ),
    )
}


def preset(name: str) -> Layout:
    """A layout by its name; UserError with the nearest one if there is none."""
    if name not in PRESETS:
        raise UserError(f"layout={name}: no such layout; {nearest(name, PRESETS)} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]
