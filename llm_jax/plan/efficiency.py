"""How much of a datasheet's rates programs reach: the few figures that a prediction rests on, in one place.

`EXPECTED` is the prediction, `BEST` and `WORST` its bounds. One set for all devices, models and layouts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """Shares of the hardware's rates, and what things cost beside."""

    name: str
    """Of the set."""
    matmul: float
    """Of peak FLOP/s: matrix products and convolutions."""
    attention_forward: float
    """Of peak FLOP/s: fused attention, counted without what the mask hides."""
    attention_backward: float
    """The same of its backward kernel, which computes the scores again (counted)."""
    memory: float
    """Of memory bandwidth."""
    node: float
    """Of the links within a node."""
    network: float
    """Of the links across nodes."""
    launch: float
    """Seconds between kernels."""
    slowdown: float
    """How much longer a kernel takes while a collective runs beside it, which takes cores and memory bandwidth from it."""


BEST = Efficiency("best", 0.80, 0.65, 0.55, memory=0.92, node=0.82, network=0.92, launch=1e-6, slowdown=0.0)
"""What single kernels and libraries were seen to reach. Large bf16 products on an H200: 80 % of the datasheet (790 TFLOP/s, measured).
Attention on an H100, causal, 8k tokens: about 65 % forward, 55 % backward (FlashAttention-3, Shah et al. 2024, figures 5 and 6). NCCL within
a node of 8 H100: 360 to 370 of 450 GB/s."""


def in_a_step(name: str, share: float, **others: float) -> Efficiency:
    """The rates that a train step reaches, hot and on all devices at once: those of BEST's kernels, times `share`."""
    kernels = {rate: share * getattr(BEST, rate) for rate in ("matmul", "attention_forward", "attention_backward", "memory")}
    return dataclasses.replace(BEST, name=name, **kernels, **others)


EXPECTED = in_a_step("expected", 0.70, node=0.75, network=0.80, launch=2e-6, slowdown=0.15)
"""Its share is calibrated: the largest error on three published runs is least (docs/plan.md: Llama 3 8B on 8 H100 by torchtitan, Llama 2 7B
on 8 and Llama 3 70B on 128 by MaxText). The rest is assumed: links a little below BEST, a collective's kernels take 15 % of a device."""
WORST = in_a_step("worst", 0.58, node=0.60, network=0.60, launch=4e-6, slowdown=0.30)
"""Below all three of those runs."""
SETS = (BEST, EXPECTED, WORST)

COLLECTIVE_LAUNCH = 8.4e-6
"""Seconds before a collective sends anything. Source: NCCL, src/graph/tuning.cc, base latency of rings with large messages."""
HOST_BANDWIDTH = 55e9
"""Bytes/s between a device and its host, one direction: PCIe 5.0 x16 (63e9) less what transfers reach."""
HIGHEST_PRECISION = 8.0
"""How much longer a float32 product takes without TF32 (NVIDIA A100: 156 against 19.5 TFLOP/s, H100: 495 against 67)."""
HOST_SYNC = 20e-6
"""Seconds of a trip of a loop whose end the host has to ask the device for (assumed: a copy back and the launches after it)."""
