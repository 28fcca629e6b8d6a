"""The layouts that have a name. Each is a few words; an experiment file defines others the same way."""

from __future__ import annotations

from llm_jax.errors import UserError, nearest
from llm_jax.layout.layout import Layout

EXPERTS = {"batch": "data, expert", "experts": "expert"}
TENSOR = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

PRESETS = {
    layout.name: layout
    for layout in (
        # One device does everything: the reference that all others must agree with.
        Layout("single", mesh={"data": 1}),
        # Every device has all weights and a part of the batch; gradients are summed.
        Layout("data_parallel", mesh={"data": -1}, compute={"batch": "data"}),
        # Weights, gradients and moments are split too, and gathered for use (ZeRO-3, Rajbhandari et al. 2020).
        Layout("fsdp", mesh={"data": -1}, compute={"batch": "data"}, stored={"embed": "data"}),
        # Each matrix product is split over its heads or hidden units (Megatron-LM, Shoeybi et al. 2019).
        Layout("tensor", mesh={"tensor": -1}, compute=TENSOR),
        # Both: tensor within a group of devices, fsdp across the groups.
        Layout("fsdp_tensor", mesh={"data": -1, "tensor": 2}, compute={"batch": "data", **TENSOR}, stored={"embed": "data"}),
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
    )
}


def preset(name: str) -> Layout:
    """A layout by its name; UserError with the nearest one if there is none."""
    if name not in PRESETS:
        raise UserError(f"layout={name}: no such layout; {nearest(name, PRESETS)} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]
