"""The layouts that have a name, `layout=NAME`. An experiment file defines others in this form, as a
`Layout`."""

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
        # One device. All other layouts must give its losses.
        Layout("single", mesh={"data": 1}),
        # Every device has all weights and a part of the batch; gradients are summed over devices.
        Layout("data_parallel", mesh={"data": -1}, compute={"batch": "data"}),
        # Every device has all weights, but gradients, moments and update of a part of them (ZeRO-1 and 2,
        # Rajbhandari et al. 2020).
        Layout("zero1", mesh={"data": -1}, compute={"batch": "data"}, optimizer={"embed": "data"}),
        # Weights, gradients and moments are split too, and gathered for use (ZeRO-3, Rajbhandari et al.
        # 2020).
        Layout("fsdp", mesh={"data": -1}, compute={"batch": "data"}, stored={"embed": "data"}),
        # fsdp within each node (of 8 here), replicated over nodes: weights are gathered inside a node, and
        # each device sums its eighth of the gradients over the network (MiCS, Zhang et al. 2022; HSDP, Zhao
        # et al. 2023).
        Layout(
            "hybrid_fsdp",
            mesh={"node": -1, "data": 8},
            compute={"batch": "node, data"},
            stored={"embed": "data"},
        ),
        # Each matrix product is split over its heads or hidden units (Megatron-LM, Shoeybi et al. 2019).
        Layout("tensor", mesh={"tensor": -1}, compute=TENSOR),
        # tensor within a group of devices, fsdp across the groups.
        Layout(
            "fsdp_tensor",
            mesh={"data": -1, "tensor": 2},
            compute={"batch": "data", **TENSOR},
            stored={"embed": "data"},
        ),
        # fsdp_tensor with the stream between products split over the sequence, so that norms and residuals of
        # the backward pass are split too; each all-reduce becomes a reduce-scatter and an all-gather
        # (Korthikanti et al. 2022).
        Layout(
            "fsdp_tensor_sequence",
            mesh={"data": -1, "tensor": 2},
            compute={"batch": "data", **TENSOR},
            stored={"embed": "data"},
            residual={"sequence": "tensor"},
        ),
        # A long sequence is split over devices, and weights over these devices too; all keys are gathered
        # (Llama 3, 2024).
        Layout("context_gather", mesh={"data": -1, "context": 2}, compute=CONTEXT, stored=OVER_BOTH),
        # As context_gather, but keys are passed on in a ring, so that no device ever has all of them (Liu et
        # al. 2023).
        Layout(
            "context_ring",
            mesh={"data": -1, "context": 2},
            compute=CONTEXT,
            stored=OVER_BOTH,
            attention={"keys": "context"},
        ),
        # As context_gather, but for attention each device gets whole sequences of some heads, by an
        # all-to-all (Jacobs et al. 2023).
        Layout(
            "context_ulysses",
            mesh={"data": -1, "context": 2},
            compute=CONTEXT,
            stored=OVER_BOTH,
            attention={"sequence": "", "heads": "context", "kv_heads": "context"},
        ),
        # A mixture of experts: the experts of a layer are split over a group of devices, which send each
        # other tokens (GShard, Lepikhin et al. 2020). For everything else the group splits the batch, and
        # weights at rest, as `data` does.
        Layout("expert", mesh={"data": -1, "expert": 4}, compute=EXPERTS, stored={"embed": "data, expert"}),
        # expert, with all products split within a smaller group, those of each expert too, and the stream
        # between them.
        Layout(
            "expert_tensor",
            mesh={"data": -1, "expert": 2, "tensor": 2},
            compute={**EXPERTS, **TENSOR},
            stored={"embed": "data, expert"},
            residual={"sequence": "tensor"},
        ),
        # Groups of layers on groups of devices (GPipe, Huang et al. 2019), which send each other only the
        # stream: for the slowest network. Outside of the blocks the stages split the batch, and the tables'
        # moments. Weights are whole on the devices of `data`, and only the moments are split (ZeRO-1): with
        # fsdp, weights would be gathered again for every microbatch.
        Layout(
            "pipeline",
            mesh={"stage": 4, "data": -1},
            compute=STAGES,
            optimizer={"embed": "data", "vocab": "stage"},
        ),
        # The three dimensions of Narayanan et al. 2021: layers across nodes, matrices within a node, the
        # batch over the rest.
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
    """The preset of this name; an unknown name raises UserError with the nearest one."""
    if name not in PRESETS:
        raise UserError(
            f"layout={name}: no such layout; {nearest(name, PRESETS)} (presets: {', '.join(PRESETS)})"
        )
    return PRESETS[name]
